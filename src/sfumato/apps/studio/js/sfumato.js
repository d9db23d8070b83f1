// sfumato for the browser: use a classifier in the cloud without showing it the image.
//
//   import * as ort from "onnxruntime-web/wasm";
//   import { Client, loadBundle } from "sfumato";
//
//   const client = new Client("https://classify.example.org", await loadBundle("/bundle/", { ort }));
//   const prediction = await client.classify(file);
//   console.log(prediction.label, prediction.probability, prediction.predictedBy);
//
// It fails closed: there is one function that sends (`Client.send`), and it takes obfuscated images only. When anything
// goes wrong, an error is thrown and nothing is sent. An obfuscator is not encryption: what it sends leaks information.

import { Bundle, ObfuscatedImage, classLogits, sha256, softmax } from "./bundle.js";
import { BundleError, EndpointError } from "./errors.js";
import { HEADER_LENGTH, decodeResponse, encodeRequest, parseObject } from "./wire.js";

export { Bundle, ObfuscatedImage, classLogits, loadBundle, sha256, softmax, tensorToImageData } from "./bundle.js";
export { BundleError, EndpointError, ImageError, SfumatoError } from "./errors.js";
export { fit, loadImage, toImageData } from "./image.js";

const MAX_RESPONSE_BYTES = 16 * 2 ** 20;

/** Classifies images at an endpoint that never sees them. */
export class Client {
  #server;
  #bundle;
  #options;
  #plan = null;

  /**
   * @param {string | URL} server the endpoint's address.
   * @param {Bundle} bundle
   * @param {{model?: string, token?: string, timeoutMs?: number, gate?: boolean, onRequest?: Function}} options
   *   model: its name at the endpoint, by default the bundle's classifier; gate: let the bundle's gate, if it has one,
   *   handle images on-device; onRequest: called with the address, headers and bytes of a request before it is sent.
   * @throws {EndpointError} an address that cannot be used, or a token that would be sent in the clear.
   */
  constructor(server, bundle, { model, token, timeoutMs = 10_000, gate = true, onRequest = () => {} } = {}) {
    if (!(bundle instanceof Bundle)) throw new BundleError("a client needs a bundle from loadBundle");
    this.#server = checkedServer(server, token);
    this.#bundle = bundle;
    this.#options = { model: model ?? bundle.name, token, timeoutMs, gate, onRequest };
  }

  get bundle() {
    return this.#bundle;
  }

  /**
   * Classify one image. If the bundle's gate handles it on-device, no request is made.
   *
   * @param source whatever `loadImage` takes.
   * @returns {Promise<object>} see `Prediction` in sfumato.d.ts.
   * @throws {ImageError | BundleError | EndpointError}
   */
  async classify(source) {
    const decision = await this.#bundle.decide(source, { gate: this.#options.gate });
    const { obfuscated, probabilities, milliseconds, outOfDistribution } = decision;
    const prediction = obfuscated === null ? this.#prediction(probabilities, "device", milliseconds) : await this.send(obfuscated, milliseconds);
    return { ...prediction, outOfDistribution };
  }

  /**
   * Send an obfuscated image: the only way out of the device.
   *
   * @param {ObfuscatedImage} obfuscated
   * @param {number} obfuscateMs passed on to the prediction.
   * @throws {BundleError} something else was given.
   * @throws {EndpointError} no usable response came.
   */
  async send(obfuscated, obfuscateMs = 0) {
    if (!ObfuscatedImage.is(obfuscated)) throw new BundleError("only obfuscated images may be sent; nothing was sent");
    this.#plan ??= await this.#fetchPlan();
    const { input, output, fingerprint } = this.#plan;
    const id = newRequestId();
    const request = encodeRequest(input, obfuscated.shape, obfuscated.tensor, output, id);
    const url = this.#url("/infer");
    this.#options.onRequest({ url: url.href, ...request, body: request.body.slice() });
    const start = performance.now();
    const reply = await this.#ask(url, { method: "POST", body: request.body, headers: request.headers });
    const roundTripMs = performance.now() - start;
    const outputs = decodeResponse(reply.body, reply.headers.get(HEADER_LENGTH), { id, model: this.#options.model });
    const logits = merged(pick(outputs, output, this.#bundle.outputs), this.#bundle.manifest.class_map);
    const sent = { payloadBytes: request.body.length, roundTripMs, fingerprint };
    return this.#prediction(softmax(logits), "cloud", obfuscateMs, sent);
  }

  #prediction(probabilities, predictedBy, obfuscateMs, sent = { payloadBytes: 0, roundTripMs: 0, fingerprint: null }) {
    const index = probabilities.indexOf(Math.max(...probabilities));
    const [label, probability] = [this.#bundle.labels[index], probabilities[index]];
    return { label, index, probability, probabilities, predictedBy, obfuscateMs, ...sent };
  }

  /** Fetch the model's metadata, and decide how to ask. Nothing of any image is sent. */
  async #fetchPlan() {
    const { body } = await this.#ask(this.#url(""), {});
    const metadata = parseObject(body, "the model's metadata");
    const { height, width } = this.#bundle.preprocessing;
    const inputs = metadata.inputs ?? [];
    if (inputs.length !== 1 || inputs[0].datatype !== "FP32" || !accepts(inputs[0].shape, [3, height, width])) {
      throw new EndpointError(`the model must take one FP32 input of [-1, 3, ${height}, ${width}]; it takes others`);
    }
    const outputs = metadata.outputs ?? [];
    const output = outputs.find(({ shape }) => accepts(shape, [this.#bundle.outputs]));
    if (outputs.length && output === undefined) {
      throw new EndpointError(`the model has no output with ${this.#bundle.outputs} classes per image`);
    }
    const served = metadata.parameters?.fingerprint;
    const match = served === this.#bundle.classifierFingerprint ? "match" : "differs";
    return {
      input: inputs[0].name,
      output: output?.name ?? null,
      fingerprint: typeof served === "string" ? match : "unknown",
    };
  }

  #url(end) {
    return new URL(`v2/models/${encodeURIComponent(this.#options.model)}${end}`, this.#server);
  }

  async #ask(url, { method = "GET", body, headers = {} }) {
    const { token, timeoutMs } = this.#options;
    try {
      const reply = await fetch(url, {
        method,
        body,
        headers: token === undefined ? headers : { ...headers, Authorization: `Bearer ${token}` },
        redirect: "error", // a redirect could take the data elsewhere
        credentials: "omit",
        cache: "no-store",
        referrerPolicy: "no-referrer",
        signal: AbortSignal.timeout(timeoutMs),
      });
      if (reply.ok) return { headers: reply.headers, body: await limited(reply) };
      throw new EndpointError(`${url.host} responded with status ${reply.status}${await reason(reply)}`);
    } catch (error) {
      if (error instanceof EndpointError) throw error;
      if (error?.name === "TimeoutError") throw new EndpointError(`${url.host} did not respond within ${timeoutMs / 1000} s`);
      throw new EndpointError(`no response from ${url.host}: the network or the server is gone`);
    }
  }
}

function checkedServer(server, token) {
  const url = new URL(server, globalThis.location?.href);
  if (!["http:", "https:"].includes(url.protocol) || url.username || url.password) {
    throw new EndpointError("the server's address must look like https://host:port, without user name or password");
  }
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(url.hostname);
  if (token !== undefined && url.protocol === "http:" && !local) {
    throw new EndpointError(`the token would be sent in the clear to ${url.host}; use https`);
  }
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url;
}

/** A mark for one request that no other one has. */
function newRequestId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function accepts(shape, row) {
  return Array.isArray(shape) && shape.length === row.length + 1 && row.every((n, i) => [-1, n].includes(shape[i + 1]));
}

function pick(outputs, name, classes) {
  const found = name === null ? outputs[0] : outputs.find((output) => output.name === name);
  if (found === undefined) throw new EndpointError(`the response lacks the output "${name}" that was asked for`);
  if (found.shape.length !== 2 || found.shape[0] !== 1 || found.shape[1] !== classes) {
    throw new EndpointError(`the response has the shape [${found.shape}]; [1, ${classes}] was expected`);
  }
  if (!found.values.every(Number.isFinite)) throw new EndpointError("the response holds NaN or infinite values");
  return found.values;
}

function merged(logits, classMap) {
  const sum = logits.reduce((a, b) => a + b, 0);
  if (classMap?.groups.some((group) => group.length > 1) && Math.abs(sum - 1) < 1e-3 && logits.every((v) => v >= 0)) {
    throw new EndpointError("the response holds probabilities; the bundle's class map merges several outputs, and needs logits");
  }
  return classLogits(logits, classMap);
}

async function limited(reply) {
  const chunks = [];
  let length = 0;
  for (const reader = reply.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    length += value.length;
    if (length > MAX_RESPONSE_BYTES) {
      await reader.cancel();
      throw new EndpointError(`the response is longer than ${MAX_RESPONSE_BYTES} bytes`);
    }
    chunks.push(value);
  }
  const body = new Uint8Array(length);
  chunks.reduce((offset, chunk) => (body.set(chunk, offset), offset + chunk.length), 0);
  return body;
}

async function reason(reply) {
  try {
    const { error } = parseObject(await limited(reply), "the error");
    return typeof error === "string" ? `: ${error.slice(0, 200)}` : "";
  } catch {
    return "";
  }
}
