// A wide table scrolls by keyboard too, and the captions of the list of pages are headings of a level.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".table-wrapper").forEach((wrapper) => wrapper.setAttribute("tabindex", "0"));
  document.querySelectorAll("[role=heading]:not([aria-level])").forEach((caption) => caption.setAttribute("aria-level", "2"));
});
