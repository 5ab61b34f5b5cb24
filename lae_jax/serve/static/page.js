// The page: sends each photograph in a request, a few requests at a time, and draws the answers. It stores nothing.
import { boxes, plot } from "./drawing.js";
import { csv, save } from "./downloads.js";
import { inJson, shown } from "./foreign.js";

const AT_ONCE = 3;
const TRIES = 6;
const $ = (id) => document.getElementById(id);
const [input, drop, output, results, status, progress] = ["files", "drop", "output", "results", "status", "progress"].map($);

let key = ""; // of a server that asks for one; it is kept until the page is left
let limits = { bytes: Infinity };
let about = {};
let waiting = [];
let done = [];
let active = 0;
let total = 0;
let without = 0;

function element(name, content, ...classes) {
  const made = document.createElement(name);
  if (content) made.textContent = shown(content);
  made.classList.add(...classes);
  return made;
}

function request(path, options = {}) {
  return fetch(path, { ...options, headers: key ? { authorization: `Bearer ${key}` } : {} });
}

async function describeModel() {
  const reply = await request("v1/model");
  const model = await reply.json();
  $("key-form").hidden = reply.status !== 401;
  if (reply.status === 401) {
    $("model").textContent = key ? "The key is wrong." : "This server needs a key.";
    $("key").focus();
    return;
  }
  limits = model.limits;
  const what = model.aligned ? "face crops that were cut like those of its training data" : "photographs";
  const sure = model.interval ? "" : " It is not calibrated, so it gives no intervals.";
  const note = model.note ? ` It was ${model.note}.` : "";
  $("model").textContent = shown(`Model ${model.model}, for ${what}.${note}${sure}`);
  $("doubts").append(...model.doubts.map((line) => element("li", line)));
  $("doubts").hidden = !model.doubts.length;
  about = { model: model.model, versions: model.versions };
  const card = await request("card");
  if (!card.ok) throw new Error(card.statusText);
  $("card").innerHTML = await card.text();
}

function take(files) {
  const photographs = [...files];
  if (!photographs.length) return;
  output.hidden = false;
  total += photographs.length;
  waiting.push(...photographs.map((file) => ({ file, place: results.appendChild(placeholder(file)) })));
  tell();
  while (active < AT_ONCE && waiting.length) next();
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
  const image = await ask(job.file);
  active -= 1;
  if (waiting.length) next();
  if (place.isConnected) {
    done.push({ place, image });
    without += image.faces.length === 0;
    await show(place, job.file, image);
    tell();
  }
}

// Never throws: an error becomes the image's reason.
async function ask(file) {
  const nothing = (reason) => ({ name: file.name, faces: [], reason });
  if (file.size > limits.bytes - 1000) return nothing(`larger than ${(limits.bytes / 1e6).toFixed(0)} MB, the limit of this server`);
  try {
    for (let attempt = 1; ; attempt++) {
      const body = new FormData();
      body.append("images", file);
      const reply = await request("v1/predict?tolerant=true", { method: "POST", body });
      const content = await reply.json();
      if ([429, 503].includes(reply.status) && attempt < TRIES) {
        await new Promise((resume) => setTimeout(resume, 1000 * (reply.headers.get("retry-after") ?? 1) * attempt));
        continue;
      }
      return content.images?.[0] ?? nothing(content.error);
    }
  } catch {
    return nothing("the server did not answer: is it still running?");
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
    line.append(element("span", `for ${Math.round(100 * conformal.level)} % of each age group ${range}`));
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
$("json").addEventListener("click", () => save("ages.json", "application/json", inJson({ ...about, images: inOrder() })));
$("clear").addEventListener("click", () => {
  [waiting, done, total, without] = [[], [], 0, 0];
  results.replaceChildren();
  output.hidden = true;
  input.focus();
});
const begin = () => describeModel().catch(() => ($("card").textContent = "The server did not answer."));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  begin();
});
begin();
