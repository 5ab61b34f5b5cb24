// The page of the server: sends each photograph in a request, a few requests at a time.
import { $, begin, element, nothing } from "./cards.js";
import { shown } from "./foreign.js";

const AT_ONCE = 3;
const TRIES = 6;

let key = ""; // of a server that asks for one; it is kept until the page is left
let limits = { bytes: Infinity };
let about = {};

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

// Never throws: an error becomes the image's reason.
async function ask(file) {
  if (file.size > limits.bytes - 1000) return nothing(file, `larger than ${(limits.bytes / 1e6).toFixed(0)} MB, the limit of this server`);
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
      return content.images?.[0] ?? nothing(file, content.error);
    }
  } catch {
    return nothing(file, "the server did not answer: is it still running?");
  }
}

begin({ ask, atOnce: AT_ONCE, about: () => about });
const describe = () => describeModel().catch(() => ($("card").textContent = "The server did not answer."));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  describe();
});
describe();
