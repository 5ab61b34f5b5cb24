// The results as files.
import { inCsv } from "./foreign.js";

// Those of `python -m lae_jax.predict --out ages.csv`.
const COLUMNS = ["name", "face", "age", "lower", "upper", "left", "top", "right", "bottom", "cut_by", "reason"];

export function csv(images) {
  const rows = images.flatMap((image) => {
    if (!image.faces.length) return [[image.name, ...Array(9).fill(""), image.reason]];
    return image.faces.map((face) => {
      const { interval, box } = face;
      return [image.name, face.face, face.age, interval?.lower, interval?.upper, ...(box ?? Array(4).fill("")), face.cut_by, ""];
    });
  });
  return [COLUMNS, ...rows].map((row) => row.map(inCsv).join(",")).join("\r\n") + "\r\n";
}

export function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  // The download has begun when this runs.
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
