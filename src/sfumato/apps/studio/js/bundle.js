// An obfuscator's bundle, loaded and run in the browser: image in, obfuscated image out, or an error; never the image.
// The browser's side of `sfumato.device.obfuscator`.

import { BundleError } from "./errors.js";
import { fit, loadImage, toTensor } from "./image.js";
import { probeImages, showsImage, showsProbes } from "./recognisable.js";

export const SCHEMA = "sfumato.bundle/2";
const READABLE = [SCHEMA, "sfumato.bundle/1"];
/** An output this close to the image everywhere is the image. */
export const SAME_WITHIN = 1e-3;
const RANGE_SLACK = 0.02; // a preview is scaled only if its values leave [0, 1] by more than rounding does
const MAKER = Symbol("only a bundle makes obfuscated images");

/** What may leave the device. Only `Bundle` makes one; its values cannot be changed afterwards. */
export class ObfuscatedImage {
  #values;
  #preprocessing;

  constructor(maker, values, preprocessing) {
    if (maker !== MAKER) throw new BundleError("only a bundle's obfuscator makes obfuscated images");
    this.#values = values.slice();
    this.#preprocessing = preprocessing;
  }

  /** Whether a value is one; nothing that merely has the same fields passes. */
  static is(value) {
    return value !== null && typeof value === "object" && #values in value;
  }

  /** The classifier's input, normalised: a copy of the (3, H, W) values. */
  get tensor() {
    return this.#values.slice();
  }

  /** [1, 3, H, W] */
  get shape() {
    return [1, 3, this.#preprocessing.height, this.#preprocessing.width];
  }

  /** The image as people see it; if values leave [0, 1], it is scaled from its smallest to its largest value. */
  preview() {
    const { mean, std, height, width } = this.#preprocessing;
    const area = height * width;
    const pixels = this.#values.map((v, i) => v * std[Math.floor(i / area)] + mean[Math.floor(i / area)]);
    const low = pixels.reduce((a, b) => Math.min(a, b), Infinity);
    const high = pixels.reduce((a, b) => Math.max(a, b), -Infinity);
    const scaled = low < -RANGE_SLACK || high > 1 + RANGE_SLACK;
    return tensorToImageData(scaled ? pixels.map((v) => (v - low) / Math.max(high - low, 1e-12)) : pixels, height, width);
  }
}

/**
 * Load an obfuscator's bundle and check every file of it that is used against the manifest's SHA-256.
 *
 * @param {string | URL} url the bundle's folder, ending in "/".
 * @param {{ort: object, allowRecognisable?: boolean}} options ort: the module of `onnxruntime-web` (its wasm build is
 *   enough); allowRecognisable: accept payloads that show the image, of a bundle that declares itself a baseline.
 * @returns {Promise<Bundle>}
 * @throws {BundleError} missing, damaged or of another kind, or this browser cannot run it; or its payloads of synthetic
 *   images are malformed, or show them, and that is not allowed, or asked for with a bundle that is no baseline.
 */
export async function loadBundle(url, { ort, allowRecognisable = false }) {
  if (typeof WebAssembly !== "object") throw new BundleError("this browser has no WebAssembly, which runs the obfuscator");
  const base = new URL(url, globalThis.location?.href);
  const manifest = checkedManifest(parse(await get(new URL("bundle.json", base))));
  if (allowRecognisable && manifest.recipe.kind !== "baseline") {
    throw new BundleError("this bundle does not declare itself a baseline; recognisable payloads cannot be allowed");
  }
  const session = await open(ort, await verified(base, manifest, "obfuscator.onnx"));
  const bundle = new Bundle(MAKER, base, manifest, ort, session, allowRecognisable);
  await bundle.checkOnProbes();
  return bundle;
}

/** A bundle, ready to obfuscate. Made by `loadBundle`. */
export class Bundle {
  #base;
  #manifest;
  #ort;
  #session;
  #allowed;
  #turn = Promise.resolve(); // a session runs one image at a time

  constructor(maker, base, manifest, ort, session, allowRecognisable) {
    if (maker !== MAKER) throw new BundleError("bundles are made by loadBundle");
    const outputs = 1 + Number(manifest.gate !== null) + Number("decoder.onnx" in manifest.files);
    if (session.inputNames.length !== 1 || session.outputNames.length !== outputs) {
      throw new BundleError(`obfuscator.onnx must have one input and ${outputs} outputs, as bundle.json states`);
    }
    [this.#base, this.#manifest, this.#ort, this.#session] = [base, manifest, ort, session];
    this.#allowed = allowRecognisable;
  }

  /** Fails closed: a bundle whose payloads show synthetic images is not used. Called by `loadBundle`. */
  async checkOnProbes() {
    const { height, width } = this.preprocessing;
    const probes = probeImages(height, width);
    const payloads = [];
    for (const probe of probes) payloads.push((await this.#payload(probe)).payload);
    if (!this.#allowed && showsProbes(probes, payloads, height, width)) throw recognisable();
  }

  /** The classifier's name; what a server calls the model. */
  get name() {
    return this.#manifest.name;
  }

  /** One name per class, in the order of the logits. */
  get labels() {
    return this.#manifest.labels;
  }

  /** How many logits the classifier gives: one per label, unless a class map says otherwise. */
  get outputs() {
    return this.#manifest.class_map?.outputs ?? this.labels.length;
  }

  get preprocessing() {
    return this.#manifest.preprocessing;
  }

  /** When an on-device prediction is final, so that nothing is sent; null if everything is sent. */
  get gate() {
    return this.#manifest.gate;
  }

  /** `sha256:<hex>` of the classifier that it was trained for. */
  get classifierFingerprint() {
    return this.#manifest.classifier_fingerprint;
  }

  /** The whole of `bundle.json`: recipe, measured figures, provenance. */
  get manifest() {
    return this.#manifest;
  }

  /** Load a file of the bundle and check it against the manifest. */
  file(name) {
    return verified(this.#base, this.#manifest, name);
  }

  /** Fit an image to the obfuscator's size: RGB bytes. */
  async prepare(source) {
    return fit(await loadImage(source), this.preprocessing.height, this.preprocessing.width);
  }

  /** Obfuscate one image, even if the gate would handle it on-device. */
  async obfuscate(source) {
    return (await this.#run(source)).obfuscated;
  }

  /**
   * Decide whether an image has to be sent.
   *
   * @param source whatever `loadImage` takes.
   * @param {{gate?: boolean}} options gate: whether the on-device prediction may be final.
   * @returns {Promise<{probabilities: number[] | null, obfuscated: ObfuscatedImage | null, milliseconds: number,
   *   outOfDistribution: boolean | null}>}
   *   probabilities: of the on-device prediction, null without a gate; obfuscated: what has to be sent, null if the
   *   prediction is final, so that it cannot be sent by mistake; milliseconds: of the obfuscator's run alone;
   *   outOfDistribution: whether the image is unlike the training images, null if the bundle is not calibrated.
   * @throws {ImageError} the image cannot be used.
   * @throws {BundleError} the obfuscator failed, did not hide the image, or gave no usable on-device prediction.
   */
  async decide(source, { gate = true } = {}) {
    const { obfuscated, own, milliseconds } = await this.#run(source);
    const probabilities = own === null ? null : softmax(own);
    const onDevice = gate && probabilities !== null && !(Math.max(...probabilities) < this.gate.threshold);
    const detector = this.#manifest.ood_detector;
    const outOfDistribution = detector === null || own === null ? null : energyScore(own) < detector.threshold;
    return { probabilities, obfuscated: onDevice ? null : obfuscated, milliseconds, outOfDistribution };
  }

  async #run(source) {
    const image = toTensor(await this.prepare(source));
    const { payload, outputs, milliseconds } = await this.#payload(image);
    this.#checkHidden(image, payload);
    const own = this.gate === null ? null : this.#checkedLogits(outputs[1]);
    return { obfuscated: new ObfuscatedImage(MAKER, payload, this.preprocessing), own, milliseconds };
  }

  async #payload(image) {
    const { height, width } = this.preprocessing;
    const mine = this.#turn.then(() => this.#infer(image, [1, 3, height, width]));
    this.#turn = mine.catch(() => {});
    const { outputs, milliseconds } = await mine;
    const payload = outputs[0];
    if (!(payload instanceof Float32Array) || payload.length !== image.length) {
      throw new BundleError("the obfuscator made something of another shape or type; nothing was sent");
    }
    if (!payload.every(Number.isFinite)) throw new BundleError("the obfuscator made NaN or infinite values; nothing was sent");
    return { payload, outputs, milliseconds };
  }

  async #infer(image, shape) {
    const start = performance.now();
    try {
      const feed = { [this.#session.inputNames[0]]: new this.#ort.Tensor("float32", image.slice(), shape) };
      const results = await this.#session.run(feed);
      const outputs = this.#session.outputNames.map((name) => results[name].data);
      return { outputs, milliseconds: performance.now() - start };
    } catch {
      throw new BundleError("the obfuscator failed; nothing was sent"); // the runtime's own words may quote values
    }
  }

  /** Fails closed: what shows the image does not leave this class. */
  #checkHidden(image, payload) {
    const { mean, std, height, width } = this.preprocessing;
    if (!this.#allowed && showsImage(image, payload, height, width)) throw recognisable();
    const area = height * width;
    const normalised = image.map((v, i) => (v - mean[Math.floor(i / area)]) / std[Math.floor(i / area)]);
    for (const plain of [image, normalised]) {
      if (plain.every((value, i) => Math.abs(value - payload[i]) <= SAME_WITHIN)) {
        throw new BundleError("the obfuscator returned the image itself; nothing was sent");
      }
    }
  }

  /** Fails closed: a gate without usable logits decides nothing. */
  #checkedLogits(own) {
    if (!(own instanceof Float32Array) || own.length !== this.labels.length || !own.every(Number.isFinite)) {
      throw new BundleError("the on-device logits are not one finite number per label; nothing was sent");
    }
    return own;
  }
}

function recognisable() {
  return new BundleError("the obfuscator's output shows the image (scaled, shifted, negated or in other colours); nothing was sent");
}

/** Return the probabilities of one row of finite logits. */
export function softmax(logits) {
  const highest = Math.max(...logits);
  const exponentials = Array.from(logits, (value) => Math.exp(value - highest));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((value) => value / sum);
}

/** The negative free energy of one row of finite logits; the same as `sfumato.artifacts.out_of_distribution`. */
function energyScore(logits) {
  const highest = Math.max(...logits);
  return highest + Math.log(logits.reduce((sum, value) => sum + Math.exp(value - highest), 0));
}

/**
 * Merge one row of finite logits into classes by the class map of a `bundle.json`; without a map they are the classes.
 * The same as `ClassMap.logits` of `sfumato.artifacts.class_map`.
 */
export function classLogits(logits, classMap) {
  if (!classMap) return Array.from(logits);
  return classMap.groups.map((group) => {
    const members = group.map((index) => logits[index]);
    const highest = Math.max(...members);
    return highest + Math.log(members.reduce((sum, value) => sum + Math.exp(value - highest), 0));
  });
}

/** Return the SHA-256 in hex. */
export async function sha256(bytes) {
  if (globalThis.crypto?.subtle === undefined) {
    throw new BundleError("the browser has no SHA-256 on this address; use https, or localhost");
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Convert (3, H, W) values, clipped to [0, 1], to what a canvas shows. */
export function tensorToImageData(values, height, width) {
  const area = height * width;
  const shown = new ImageData(width, height);
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) shown.data[4 * i + c] = Math.round(Math.min(1, Math.max(0, values[c * area + i])) * 255);
    shown.data[4 * i + 3] = 255;
  }
  return shown;
}

async function get(url) {
  try {
    const reply = await fetch(url, { redirect: "error", credentials: "same-origin" });
    if (reply.ok) return new Uint8Array(await reply.arrayBuffer());
  } catch {
    // reported below
  }
  throw new BundleError(`${url.pathname} cannot be loaded; is the bundle's folder complete, and the network there?`);
}

async function verified(base, manifest, name) {
  const wanted = manifest.files[name];
  if (wanted === undefined) throw new BundleError(`the bundle has no ${name}`);
  const bytes = await get(new URL(name, base));
  if ((await sha256(bytes)) !== wanted) throw new BundleError(`${name} was changed or damaged: its SHA-256 is another one`);
  return bytes;
}

async function open(ort, bytes) {
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new BundleError(`obfuscator.onnx cannot be run here: ${String(error?.message ?? error).slice(0, 200)}`);
  }
}

function parse(bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new BundleError("bundle.json is not valid JSON");
  }
}

function checkedManifest(raw) {
  if (!READABLE.includes(raw?.schema)) throw new BundleError(`bundle.json has schema ${raw?.schema}; this version reads ${SCHEMA}`);
  if (!["single-label", undefined].includes(raw.labelling)) {
    throw new BundleError(`this bundle is ${raw.labelling}; sfumato.js takes bundles with one class per image only`);
  }
  if (raw.kind !== "obfuscator") throw new BundleError(`this bundle is of kind ${raw.kind}; an obfuscator's is needed`);
  const { height, width, mean, std } = raw.preprocessing ?? {};
  const triple = (values) => Array.isArray(values) && values.length === 3 && values.every(Number.isFinite);
  if (!(height >= 1 && width >= 1 && triple(mean) && triple(std) && std.every((v) => v > 0))) {
    throw new BundleError("preprocessing in bundle.json is malformed");
  }
  if (!Array.isArray(raw.labels) || typeof raw.files !== "object" || typeof raw.name !== "string") {
    throw new BundleError("bundle.json lacks its name, labels or files");
  }
  checkClassMap(raw.class_map ?? null, raw.labels.length);
  const gate = checkedGate(raw.gate ?? null);
  const ood_detector = raw.ood_detector ?? null;
  if (ood_detector !== null && (gate === null || !Number.isFinite(ood_detector.threshold))) {
    throw new BundleError("the ood_detector in bundle.json needs a finite threshold, and a gate beside it");
  }
  return deepFreeze({ recipe: {}, figures: {}, provenance: {}, ...raw, gate, ood_detector });
}

function checkClassMap(map, classes) {
  if (map === null) return;
  const indices = Array.isArray(map.groups) && map.groups.every(Array.isArray) ? map.groups.flat() : [];
  const known = indices.every((index) => Number.isInteger(index) && index >= 0 && index < map.outputs);
  const each = map.groups?.length === classes && map.groups.every((group) => group.length > 0);
  if (!Number.isInteger(map.outputs) || !known || !each || new Set(indices).size < indices.length) {
    throw new BundleError("the class map in bundle.json must give each label indices of the classifier's outputs, each once");
  }
}

function checkedGate(gate) {
  if (gate === null) return null;
  if (!(gate.threshold >= 0 && gate.threshold <= 1)) {
    throw new BundleError("the gate's threshold in bundle.json must lie in [0, 1]");
  }
  return { threshold: gate.threshold, offload_rate: gate.offload_rate, images: gate.images ?? gate.pictures }; // pictures: schema 1
}

function deepFreeze(value) {
  if (value !== null && typeof value === "object") Object.values(value).forEach(deepFreeze);
  return Object.freeze(value);
}
