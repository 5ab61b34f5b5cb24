// Runs beside the page: decodes pictures and estimates their ages. The first message has the files, each later one a
// picture; each gets an answer.
import { intervalOf } from "./intervals.js";
import { inputOf } from "./pixels.js";

// Pixels of a picture: more do not fit into the canvas of some phones.
const MOST_PIXELS = 4096 * 4096;
const UNREADABLE = "not an image that this browser can read: save it as JPEG or PNG";

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
  const url = async (parts) => URL.createObjectURL(new Blob([await unpacked(parts)], { type: "text/javascript" }));
  importScripts(await url(script)); // it defines `ort`
  ort.env.wasm.numThreads = 1; // threads need headers, which a file on a disk does not have
  ort.env.wasm.wasmPaths = { mjs: await url(glue) };
  ort.env.wasm.wasmBinary = await unpacked(wasm);
  model = await ort.InferenceSession.create(await unpacked(onnx));
  contract = given;
}

// Upright by its EXIF orientation, on white, without the conversion of colours that Pillow does not make either.
async function decoded(file) {
  let picture;
  try {
    picture = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Unusable(UNREADABLE);
  }
  const { width, height } = picture;
  if (width * height > MOST_PIXELS) {
    throw new Unusable(`${width} x ${height} pixels are more than ${MOST_PIXELS.toLocaleString("en")}: crop it to the face`);
  }
  const canvas = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  canvas.fillStyle = "white";
  canvas.fillRect(0, 0, width, height);
  canvas.drawImage(picture, 0, 0);
  picture.close();
  return canvas.getImageData(0, 0, width, height);
}

async function estimated(file) {
  const picture = await decoded(file);
  const { size, level } = contract;
  const image = new ort.Tensor("uint8", inputOf(picture, contract), [1, size, size, 3]);
  const outputs = await model.run({ image });
  const face = { face: 1, age: outputs.age.data[0], distribution: [...outputs.distribution.data] };
  if (level) face.interval = intervalOf(face.distribution, level);
  return { name: file.name, faces: [face], size: [picture.width, picture.height] };
}

onmessage = async ({ data }) => {
  try {
    postMessage(data.file ? await estimated(data.file) : await load(data));
  } catch (error) {
    postMessage(error instanceof Unusable ? { name: data.file.name, faces: [], reason: error.message } : { failure: `${error}` });
  }
};
