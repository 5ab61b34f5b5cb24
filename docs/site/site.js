// Wide tables and long lines scroll, by keyboard too; the captions of the list of pages are headings of a level.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".table-wrapper, pre").forEach((wide) => wide.setAttribute("tabindex", "0"));
  document.querySelectorAll("[role=heading]:not([aria-level])").forEach((caption) => caption.setAttribute("aria-level", "2"));
});
