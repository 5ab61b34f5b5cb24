// Runs beside the page: decodes pictures and estimates their ages. The first message has the files, each later one a
// picture; each gets an answer.
import { conformalOf, intervalOf } from "./intervals.js";
import { inputOf } from "./pixels.js";

// Pixels of a picture: more do not fit into the canvas of some phones.
const MOST_PIXELS = 4096 * 4096;
const UNREADABLE = "not an image that this browser can read: save it as JPEG or PNG";
const NEWER = "use a newer browser (Chromium and Firefox were tested)";
const CHANGED =
  "this browser changes the pixels that a page reads, as some privacy modes do, and the ages would be wrong: allow this page to read canvases, or use another browser";
const SIDE = 128; // of the picture by which that is found, pixels; where few pixels change, some of these do

let model;
let contract;

class Unusable extends Error {}

// A file of the page: Base64 in parts, compressed.
async function unpacked(parts) {
  const bytes = parts.map((part) => Uint8Array.from(atob(part), (character) => character.charCodeAt(0)));
  const stream = new Blob(bytes).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load({ script, glue, wasm, onnx, ...given }) {
  if (await changesPixels()) throw new Unusable(CHANGED);
  const url = async (parts) => URL.createObjectURL(new Blob([await unpacked(parts)], { type: "text/javascript" }));
  importScripts(await url(script)); // it defines `ort`
  ort.env.wasm.numThreads = 1; // threads need headers, which a file on a disk does not have
  ort.env.wasm.wasmPaths = { mjs: await url(glue) };
  ort.env.wasm.wasmBinary = await unpacked(wasm);
  model = await ort.InferenceSession.create(await unpacked(onnx));
  contract = given;
}

// Upright by its EXIF orientation, without the conversion of colours that Pillow does not make either.
const bitmap = (source) => createImageBitmap(source, { colorSpaceConversion: "none" });

// Whether pixels that are drawn and read back, as those of photographs are, differ. Some browsers change a few of them,
// so that no page knows its visitor again, or all of them.
async function changesPixels() {
  const known = new ImageData(SIDE, SIDE);
  known.data.forEach((_, place) => {
    known.data[place] = place % 4 === 3 ? 255 : (place * 73) % 251;
  });
  return pixels(await bitmap(known)).data.some((value, place) => value !== known.data[place]);
}

async function decoded(file) {
  let picture;
  try {
    picture = await bitmap(file);
  } catch {
    throw new Unusable(UNREADABLE);
  }
  const { width, height } = picture;
  if (width * height > MOST_PIXELS) {
    throw new Unusable(`${width} x ${height} pixels are more than ${MOST_PIXELS.toLocaleString("en")}: crop it to the face`);
  }
  return pixels(picture);
}

// On white.
function pixels(picture) {
  const { width, height } = picture;
  const canvas = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  canvas.fillStyle = "white";
  canvas.fillRect(0, 0, width, height);
  canvas.drawImage(picture, 0, 0);
  picture.close();
  return canvas.getImageData(0, 0, width, height);
}

async function estimated(file) {
  const picture = await decoded(file);
  const { size, level, conformal } = contract;
  const image = new ort.Tensor("uint8", inputOf(picture, contract), [1, size, size, 3]);
  const outputs = await model.run({ image });
  const face = { face: 1, age: outputs.age.data[0], distribution: [...outputs.distribution.data] };
  if (level) face.interval = intervalOf(face.distribution, level);
  if (conformal) face.conformal = conformalOf(face.age, face.distribution, conformal);
  return { name: file.name, faces: [face], size: [picture.width, picture.height] };
}

onmessage = async ({ data }) => {
  try {
    postMessage(data.file ? await estimated(data.file) : await load(data));
  } catch (error) {
    const reason = error instanceof Unusable ? error.message : "";
    if (data.file) postMessage({ name: data.file.name, faces: [], reason: reason || `the model failed in this browser (${error})` });
    else postMessage({ failure: reason || `the model does not start in this browser (${error}): ${NEWER}` });
  }
};
