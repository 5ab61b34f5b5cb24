// Names of strangers' files, by the rules of lae_jax/runtime/foreign.py.
const UNFIT = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;
const FORMULA = /(^|;)(?=[\s"']*[=+\-@−＝＋－＠﹦﹢﹣﹫])/gu;
const SHORT = { "\t": "\\t", "\n": "\\n", "\r": "\\r" };

function escaped(character) {
  const code = character.codePointAt(0);
  const [letter, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
  return SHORT[character] ?? `\\${letter}${code.toString(16).padStart(digits, "0")}`;
}

// A text as one line that a person may see.
export function shown(text) {
  return text.replace(UNFIT, escaped);
}

// A cell of a CSV: no spreadsheet takes a text for a formula.
export function inCsv(value) {
  const text = typeof value === "string" ? shown(value).replace(FORMULA, "$1'") : `${value ?? ""}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// JSON in ASCII: exact, and safe in a terminal.
export function inJson(value) {
  return JSON.stringify(value, null, 1).replace(/[\x7f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
