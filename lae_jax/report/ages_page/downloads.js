// The results as files.
import { inCsv } from "./foreign.js";

// Those of `python -m lae_jax.predict --out ages.csv`.
const FIRST = ["name", "face", "age", "lower", "upper"];
const CONFORMAL = ["conformal_lower", "conformal_upper"];
const LAST = ["left", "top", "right", "bottom", "cut_by", "reason"];

export function csv(images) {
  const further = images.some((image) => image.faces.some((face) => face.conformal)) ? CONFORMAL : [];
  const columns = [...FIRST, ...further, ...LAST];
  const rows = images.flatMap((image) => {
    if (!image.faces.length) return [[image.name, ...Array(columns.length - 2).fill(""), image.reason]];
    return image.faces.map((face) => {
      const { interval, conformal, box } = face;
      const sure = further.length ? [conformal?.lower, conformal?.upper] : [];
      const first = [image.name, face.face, face.age, interval?.lower, interval?.upper, ...sure];
      return [...first, ...(box ?? Array(4).fill("")), face.cut_by, ""];
    });
  });
  return [columns, ...rows].map((row) => row.map(inCsv).join(",")).join("\r\n") + "\r\n";
}

export function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  // The download has begun when this runs.
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
