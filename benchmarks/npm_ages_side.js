// human and face-api as sides of benchmarks.peers_ages: node npm_ages_side.js human|face-api FOLDER, where FOLDER holds
// node_modules. TensorFlow.js runs on its WebAssembly backend: the binary of tfjs-node is not in the registry. sharp
// decodes, on one thread. Requests and answers are those of benchmarks/sides.py.

const fs = require('fs');
const path = require('path');
const readline = require('readline');
const url = require('url');
const { createRequire } = require('module');

const [kind, folder] = process.argv.slice(2);
const modules = path.join(path.resolve(folder), 'node_modules');
const load = createRequire(path.join(path.resolve(folder), 'package.json'));
const wasm = path.join(modules, '@tensorflow/tfjs-backend-wasm/dist/');
for (const name of ['log', 'info', 'warn', 'debug']) console[name] = console.error; // not between the answers

// Node's fetch opens no files, and human asks it for its models.
const remote = globalThis.fetch;
globalThis.fetch = async (address, init) =>
  String(address).startsWith('file://')
    ? new Response(fs.readFileSync(url.fileURLToPath(String(address))))
    : remote(address, init);

async function pixels(file) {
  const image = load('sharp')(file).toColourspace('srgb').removeAlpha().raw();
  const { data, info } = await image.toBuffer({ resolveWithObject: true });
  return { data, shape: [info.height, info.width, 3] };
}

function largest(faces, area) {
  return faces.reduce((best, face) => (best === null || area(face) > area(best) ? face : best), null);
}

// Default settings, without what no age depends on: body, hands, gestures, emotion, iris. Its cache of the frames of a
// video is off, since photographs follow each other.
async function human() {
  load('@tensorflow/tfjs-core');
  load('@tensorflow/tfjs-backend-wasm');
  const { Human } = load(path.join(modules, '@vladmandic/human/dist/human.node-wasm.js'));
  const off = { enabled: false };
  const model = new Human({
    backend: 'wasm', wasmPath: wasm, modelBasePath: url.pathToFileURL(path.join(modules, '@vladmandic/human/models/')).href,
    cacheSensitivity: 0, body: off, hand: off, gesture: off, face: { emotion: off, iris: off },
  });
  await model.load();
  await model.warmup();
  const tf = model.tf;
  return {
    name: '@vladmandic/human',
    files: ['blazeface', 'facemesh', 'faceres'].flatMap((one) => [`models/${one}.json`, `models/${one}.bin`]),
    requires: ['@tensorflow/tfjs-core', '@tensorflow/tfjs-converter', '@tensorflow/tfjs-backend-wasm'],
    backend: tf.getBackend(),
    tensor: ({ data, shape }) => tf.tensor(data, [1, ...shape], 'float32'),
    async age(tensor) {
      const { face, error } = await model.detect(tensor);
      if (error) throw new Error(error);
      const faces = face.filter((one) => one.age !== undefined);
      return largest(faces, (one) => one.box[2] * one.box[3])?.age ?? null;
    },
    // It has no function for crops: its network of ages by itself, called as its source does.
    async ofCrop(tensor) {
      const outputs = tf.tidy(() => model.models.models.faceres.execute(tf.image.resizeBilinear(tensor, [224, 224])));
      for (const output of outputs) await output.data();
      tf.dispose(outputs);
    },
  };
}

// As its example for Node, demo/node-wasm.js, without expressions and descriptors.
async function faceApi() {
  const tf = load('@tensorflow/tfjs');
  load('@tensorflow/tfjs-backend-wasm').setWasmPaths(wasm);
  await tf.setBackend('wasm');
  await tf.ready();
  const api = load(path.join(modules, '@vladmandic/face-api/dist/face-api.node-wasm.js'));
  const nets = { ssdMobilenetv1: 'ssd_mobilenetv1', faceLandmark68Net: 'face_landmark_68', ageGenderNet: 'age_gender' };
  for (const net of Object.keys(nets)) await api.nets[net].loadFromDisk(path.join(modules, '@vladmandic/face-api/model'));
  const options = new api.SsdMobilenetv1Options({ minConfidence: 0.1, maxResults: 10 });
  return {
    name: '@vladmandic/face-api',
    files: Object.values(nets).flatMap((one) => [`model/${one}_model.bin`, `model/${one}_model-weights_manifest.json`]),
    requires: ['@tensorflow/tfjs', '@tensorflow/tfjs-backend-wasm'],
    backend: tf.getBackend(),
    tensor: ({ data, shape }) => tf.tensor3d(data, shape, 'int32'),
    async age(tensor) {
      const faces = await api.detectAllFaces(tensor, options).withFaceLandmarks().withAgeAndGender();
      return largest(faces, (one) => one.detection.box.area)?.age ?? null;
    },
    ofCrop: (tensor) => api.nets.ageGenderNet.predictAgeAndGender(tensor),
  };
}

// Bytes of packages and of all that they require.
function installed(names) {
  const seen = new Set();
  const waiting = [...names];
  while (waiting.length) {
    const name = waiting.pop();
    const place = path.join(modules, name);
    if (seen.has(place) || !fs.existsSync(place)) continue;
    seen.add(place);
    waiting.push(...Object.keys(JSON.parse(fs.readFileSync(path.join(place, 'package.json'))).dependencies ?? {}));
  }
  let bytes = 0;
  for (const place of seen) {
    for (const entry of fs.readdirSync(place, { recursive: true, withFileTypes: true })) {
      if (entry.isFile()) bytes += fs.statSync(path.join(entry.parentPath, entry.name)).size;
    }
  }
  return bytes;
}

let side = null;
const decoded = new Map();

async function timed(steps, work) {
  const [wall, cpu] = [process.hrtime.bigint(), process.cpuUsage()];
  for (let step = 0; step < steps; step++) await work();
  const { user, system } = process.cpuUsage(cpu);
  const seconds = Number(process.hrtime.bigint() - wall) / 1e9;
  return { seconds: seconds / steps, cpu_seconds: (user + system) / 1e6 / steps };
}

async function aged(file) {
  const tensor = side.tensor(await pixels(file));
  try {
    const age = await side.age(tensor);
    return Number.isFinite(age) ? age : null;
  } finally {
    tensor.dispose();
  }
}

const can = {
  async open() {
    load('sharp').concurrency(1);
    side = await { human, 'face-api': faceApi }[kind]();
    const place = path.join(modules, side.name);
    const { version } = JSON.parse(fs.readFileSync(path.join(place, 'package.json')));
    return {
      version: `${version}, TensorFlow.js ${side.backend}`,
      model_bytes: side.files.reduce((sum, file) => sum + fs.statSync(path.join(place, file)).size, 0),
      installed_bytes: installed([side.name, ...side.requires]),
    };
  },
  async ages({ paths }) {
    const ages = [];
    for (const file of paths) ages.push(await aged(file));
    return { ages };
  },
  async turn({ steps, paths, way }) {
    if (way === 'photographs') return timed(steps, async () => { for (const file of paths) await aged(file); });
    for (const file of paths) if (!decoded.has(file)) decoded.set(file, side.tensor(await pixels(file)));
    return timed(steps, async () => { for (const file of paths) await side.ofCrop(decoded.get(file)); });
  },
};

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { do: what, ...request } = JSON.parse(line);
    let answer;
    try {
      answer = await can[what](request);
    } catch (error) {
      console.error(error);
      answer = { error: `${error.name}: ${error.message}`.slice(0, 500), full: false };
    }
    fs.writeSync(1, JSON.stringify(answer) + '\n');
  }
  process.exit(0); // the worker of WebAssembly would keep it
})();
