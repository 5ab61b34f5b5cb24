// The page that needs no server: a worker runs the model, whose files are in the page itself.
import { $, begin, nothing } from "./cards.js";

const facts = JSON.parse($("facts").textContent);
const worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })));

// One message at a time, so that each answer belongs to the message before it.
function answered(message) {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data?.failure ? reject(new Error(data.failure)) : resolve(data));
    worker.onerror = (event) => reject(new Error(`the model failed in this browser (${event.message || "the worker does not start"})`));
    worker.postMessage(message);
  });
}

function parts(name) {
  const found = [...document.querySelectorAll(`[data-file="${name}"]`)];
  found.forEach((element) => element.remove());
  return found.map((element) => element.textContent);
}

const files = { script: parts("script"), glue: parts("glue"), wasm: parts("wasm"), onnx: parts("onnx") };
const ready = answered({ ...files, ...facts.contract });

// Never throws: an error becomes the image's reason.
async function ask(file) {
  try {
    await ready;
    return await answered({ file });
  } catch (error) {
    return nothing(file, error.message);
  }
}

async function tellState() {
  try {
    await ready;
    $("state").textContent = "The model is ready.";
  } catch (error) {
    $("state").textContent = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
    $("state").classList.add("problem");
  }
}

begin({ ask, atOnce: 1, about: () => ({ model: facts.model, versions: facts.versions }) });
tellState();
