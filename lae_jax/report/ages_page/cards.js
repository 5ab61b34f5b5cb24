// What pages that estimate ages share: photographs are chosen or dropped, each gets a card with its answer, and all
// answers can be downloaded. Nothing is stored.
import { boxes, plot } from "./drawing.js";
import { csv, save } from "./downloads.js";
import { inJson, shown } from "./foreign.js";

export const $ = (id) => document.getElementById(id);
const [input, drop, output, results, status, progress] = ["files", "drop", "output", "results", "status", "progress"].map($);

let estimator; // as `begin` gets it
let waiting = [];
let done = [];
let active = 0;
let total = 0;
let without = 0;

export function element(name, content, ...classes) {
  const made = document.createElement(name);
  if (content) made.textContent = shown(content);
  made.classList.add(...classes);
  return made;
}

function take(files) {
  const photographs = [...files];
  if (!photographs.length) return;
  output.hidden = false;
  total += photographs.length;
  waiting.push(...photographs.map((file) => ({ file, place: results.appendChild(placeholder(file)) })));
  tell();
  while (active < estimator.atOnce && waiting.length) next();
}

function placeholder(file) {
  const card = element("article");
  const head = element("header");
  head.append(element("h3", file.name), element("p", "waiting"));
  card.append(head);
  return card;
}

async function next() {
  const job = waiting.shift();
  const { place } = job;
  active += 1;
  place.querySelector("header p").textContent = "in progress";
  const image = await estimator.ask(job.file);
  active -= 1;
  if (waiting.length) next();
  if (place.isConnected) {
    done.push({ place, image });
    without += image.faces.length === 0;
    await show(place, job.file, image);
    tell();
  }
}

async function show(place, file, image) {
  const count = image.faces.length;
  const more = image.left_out ? `, and ${image.left_out} smaller without an age` : "";
  const told = count === 0 ? "no age" : count === 1 ? "1 face" : `${count} faces`;
  place.querySelector("header p").textContent = told + more;
  const picture = await decoded(file);
  if (picture) place.append(framed(picture, file, image));
  if (image.reason) {
    const end = image.reason.endsWith("?") ? "" : ".";
    place.append(element("p", `No age: ${image.reason}${end}`, "problem"));
    return;
  }
  const list = element("ol", "", "faces");
  list.append(...image.faces.map((face) => described(face, count)));
  place.append(list);
}

async function decoded(file) {
  const picture = new Image();
  picture.src = URL.createObjectURL(file);
  try {
    await picture.decode();
    return picture;
  } catch {
    return null; // browsers do not show this type of file
  } finally {
    URL.revokeObjectURL(picture.src);
  }
}

function framed(picture, file, image) {
  const figure = element("figure");
  picture.alt = `${shown(file.name)}, as it was chosen`;
  figure.append(picture);
  const found = image.faces.filter((face) => face.box);
  if (!found.length) return figure;
  if (isUpright(picture, file, image)) figure.append(boxes(found, ...image.size));
  else figure.append(element("figcaption", "No boxes, because browsers do not turn this photograph upright."));
  return figure;
}

// Boxes are in pixels of the upright photograph. Browsers turn most types of files by their EXIF, but not WebP.
function isUpright(picture, file, image) {
  const [width, height] = image.size;
  const shape = (picture.naturalWidth * height) / (picture.naturalHeight * width);
  return Math.abs(shape - 1) < 0.01 && !(file.type === "image/webp" && image.orientation);
}

function described(face, count) {
  const item = element("li");
  const line = element("p", "", "age");
  if (count > 1) line.append(element("span", `${face.face}`, "which"));
  line.append(element("strong", `${face.age.toFixed(1)} years`));
  const { interval } = face;
  if (interval) {
    const range = `${interval.lower.toFixed(0)} to ${interval.upper.toFixed(0)}`;
    line.append(element("span", `${Math.round(100 * interval.level)} % interval ${range}`));
  }
  const { conformal } = face;
  if (conformal) {
    const range = `${conformal.lower.toFixed(0)} to ${conformal.upper.toFixed(0)}`;
    line.append(element("span", `${Math.round(100 * conformal.level)} % conformal interval ${range}`));
  }
  item.append(line, plot(face));
  return item;
}

function tell() {
  const finished = done.length;
  const failed = without ? `, ${without} without an age` : "";
  status.textContent = `${finished} of ${total} ${total === 1 ? "photograph" : "photographs"} done${failed}.`;
  progress.max = total;
  progress.value = finished;
  for (const id of ["csv", "json"]) $(id).disabled = finished === 0;
}

// The images in the order in which they were chosen, not in the order of the answers.
function inOrder() {
  const cards = [...results.children];
  return [...done].sort((a, b) => cards.indexOf(a.place) - cards.indexOf(b.place)).map(({ image }) => image);
}

// The answer for an image without an age.
export function nothing(file, reason) {
  return { name: file.name, faces: [], reason };
}

// Lets people choose photographs. The page has the elements whose ids are used here. It gives
// ask(file): a promise of the image's answer, as of /v1/predict, which never fails;
// atOnce: how many files it asks about at a time;
// about(): the fields of the JSON besides `images`.
export function begin(given) {
  estimator = given;
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files);
  });
  $("csv").addEventListener("click", () => save("ages.csv", "text/csv", csv(inOrder())));
  $("json").addEventListener("click", () => save("ages.json", "application/json", inJson({ ...estimator.about(), images: inOrder() })));
  $("clear").addEventListener("click", () => {
    [waiting, done, total, without] = [[], [], 0, 0];
    results.replaceChildren();
    output.hidden = true;
    input.focus();
  });
}
