// The npm package in Node, with Node's own test runner: `npm test` in the package's folder.
//
// ONNX Runtime is a stand-in that permutes pixels, and the server notes every byte.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { test } from "node:test";

import * as sfumato from "../../../src/sfumato/apps/studio/js/sfumato.js";

const { BundleError, Client, EndpointError, ImageError, loadBundle } = sfumato;
const SIDE = 8;
const AREA = SIDE * SIDE;
const LABELS = ["cat", "dog", "ship"];
const FILE = Buffer.from("a file for the stand-in");

// A linear congruential generator: the same numbers in every run.
function* numbers(seed) {
  for (let state = seed; ; ) yield (state = (state * 1664525 + 1013904223) % 2 ** 32) / 2 ** 32;
}
function some(count, seed, make) {
  const source = numbers(seed);
  return Array.from({ length: count }, () => make(source.next().value));
}
const IMAGE = { width: SIDE, height: SIDE, data: Uint8Array.from(some(3 * AREA, 7, (v) => Math.floor(256 * v))) };
const ORDER = some(AREA, 3, (v) => v).map((value, index) => [value, index]).sort(([a], [b]) => a - b).map(([, i]) => i);
const WEIGHT = LABELS.map((_, label) => some(3 * AREA, 11 + label, (v) => v - 0.5));

const unit = (image) => Array.from({ length: 3 * AREA }, (_, i) => image.data[3 * (i % AREA) + Math.floor(i / AREA)] / 255);
const permuted = (values) => values.map((_, i) => values[AREA * Math.floor(i / AREA) + ORDER[i % AREA]]);
const logits = (payload) => WEIGHT.map((row) => row.reduce((sum, w, i) => sum + w * payload[i], 0));

function runtime({ hides = true, own = null } = {}) {
  class Tensor {
    constructor(type, data, dims) {
      Object.assign(this, { type, data, dims });
    }
  }
  const run = async (feed) => {
    const values = Array.from(feed.image.data);
    return { out: { data: Float32Array.from(hides ? permuted(values) : values) }, own: { data: Float32Array.from(own ?? []) } };
  };
  const session = { inputNames: ["image"], outputNames: own ? ["out", "own"] : ["out"], run };
  return { Tensor, InferenceSession: { create: async () => session } };
}

/** Serve a bundle and a model; return what was asked, and every byte that was received. */
async function serving(t, { infer = respond, gate = null, sha256, ...more } = {}) {
  const seen = { paths: [], bytes: Buffer.alloc(0) };
  const hash = sha256 ?? createHash("sha256").update(FILE).digest("hex");
  const manifest = {
    schema: "sfumato.bundle/2", kind: "obfuscator", name: "tiny", labels: LABELS, gate, classifier_fingerprint: "sha256:0",
    preprocessing: { height: SIDE, width: SIDE, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25] }, files: { "obfuscator.onnx": hash }, ...more,
  };
  const metadata = {
    name: "tiny", inputs: [{ name: "input", datatype: "FP32", shape: [-1, 3, SIDE, SIDE] }],
    outputs: [{ name: "logits", datatype: "FP32", shape: [-1, LABELS.length] }], parameters: { fingerprint: "sha256:0" },
  };
  const server = createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      const body = Buffer.concat(chunks);
      seen.paths.push(request.url);
      seen.bytes = Buffer.concat([seen.bytes, Buffer.from(JSON.stringify([request.url, request.headers])), body]);
      if (request.url === "/bundle/bundle.json") response.end(JSON.stringify(manifest));
      else if (request.url === "/bundle/obfuscator.onnx") response.end(FILE);
      else if (request.url === "/v2/models/tiny") response.end(JSON.stringify(metadata));
      else infer(response, body, request);
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { seen, url: `http://127.0.0.1:${server.address().port}` };
}

function respond(response, body, request, changes = {}) {
  const length = Number(request.headers["inference-header-content-length"]);
  const { id, inputs } = JSON.parse(body.subarray(0, length));
  const payload = Array.from({ length: 3 * AREA }, (_, i) => body.readFloatLE(length + 4 * i));
  assert.deepEqual(inputs[0].shape, [1, 3, SIDE, SIDE]);
  const outputs = [{ name: "logits", datatype: "FP32", shape: [1, LABELS.length], data: logits(payload) }];
  response.end(JSON.stringify({ model_name: "tiny", id, outputs, ...changes }));
}

/** No piece of the image, as bytes or as floats, is among what was received. */
function assertSilent(seen) {
  const forms = { bytes: Buffer.from(IMAGE.data), floats: Buffer.from(Float32Array.from(unit(IMAGE)).buffer) };
  for (const [form, data] of Object.entries(forms)) {
    for (let i = 0; i + 24 <= data.length; i += 24) assert.ok(!seen.bytes.includes(data.subarray(i, i + 24)), form);
  }
}

test("it classifies what the obfuscator made of the image, and sends nothing else", async (t) => {
  const { seen, url } = await serving(t);
  const client = new Client(url, await loadBundle(`${url}/bundle/`, { ort: runtime() }));
  const prediction = await client.classify(IMAGE);
  const scores = logits(permuted(unit(IMAGE))).map(Math.exp);
  const sum = scores.reduce((a, b) => a + b);
  prediction.probabilities.forEach((value, i) => assert.ok(Math.abs(value - scores[i] / sum) < 1e-4));
  assert.equal(prediction.label, LABELS[scores.indexOf(Math.max(...scores))]);
  assert.deepEqual([prediction.predictedBy, prediction.fingerprint], ["cloud", "match"]);
  assertSilent(seen);
});

test("the search for the image finds it where it is", () => {
  assert.throws(() => assertSilent({ bytes: Buffer.from(IMAGE.data) }), /bytes/);
});

test("a sure on-device prediction sends nothing", async (t) => {
  const { seen, url } = await serving(t, { gate: { threshold: 0.9, offload_rate: 0.5, images: 10 } });
  const bundle = await loadBundle(`${url}/bundle/`, { ort: runtime({ own: [0, 9, 0] }) });
  const prediction = await new Client(url, bundle).classify(IMAGE);
  assert.deepEqual([prediction.predictedBy, prediction.label], ["device", "dog"]);
  assert.ok(!seen.paths.some((path) => path.startsWith("/v2")));
});

test("an image unlike the training images is flagged, sent or not, as in Python", async (t) => {
  const own = [0, 3, 1]; // its energy score is log(1 + e^3 + e) = 3.1698
  for (const [threshold, expected] of [[3.16, false], [3.18, true]]) {
    for (const [share, by] of [[0.5, "device"], [0.99, "cloud"]]) {
      const gate = { threshold: share, offload_rate: 0.5, images: 10 };
      const { url } = await serving(t, { gate, ood_detector: { threshold, false_alarm_rate: 0.05, images: 10 } });
      const prediction = await new Client(url, await loadBundle(`${url}/bundle/`, { ort: runtime({ own }) })).classify(IMAGE);
      assert.deepEqual([prediction.outOfDistribution, prediction.predictedBy], [expected, by]);
    }
  }
  const { url } = await serving(t);
  const old = await new Client(url, await loadBundle(`${url}/bundle/`, { ort: runtime() })).classify(IMAGE);
  assert.equal(old.outOfDistribution, null);
  const useless = await serving(t, { ood_detector: { threshold: 1, false_alarm_rate: 0.05, images: 10 } });
  await assert.rejects(loadBundle(`${useless.url}/bundle/`, { ort: runtime() }), /ood_detector/);
});

test("a bundle that shows the image, or was changed, is refused", async (t) => {
  const { url } = await serving(t);
  await assert.rejects(loadBundle(`${url}/bundle/`, { ort: runtime({ hides: false }) }), BundleError);
  const damaged = await serving(t, { sha256: "0".repeat(64) });
  await assert.rejects(loadBundle(`${damaged.url}/bundle/`, { ort: runtime() }), /changed or damaged/);
});

test("only what a bundle made can be sent", async (t) => {
  const { seen, url } = await serving(t);
  const client = new Client(url, await loadBundle(`${url}/bundle/`, { ort: runtime() }));
  const looksAlike = { tensor: Float32Array.from(unit(IMAGE)), shape: [1, 3, SIDE, SIDE] };
  for (const wrong of [IMAGE, looksAlike, null]) await assert.rejects(client.send(wrong), BundleError);
  await assert.rejects(client.classify({ ...IMAGE, data: IMAGE.data.subarray(3) }), ImageError);
  assert.ok(!seen.paths.some((path) => path.startsWith("/v2")));
});

const FAULTS = {
  "an error": (response) => response.writeHead(503).end('{"error": "no"}'),
  "a redirect": (response) => response.writeHead(307, { Location: "/elsewhere" }).end(),
  "no JSON": (response) => response.end("<html>"),
  "a connection that ends": (response) => response.socket.destroy(),
  "silence": () => {},
  "another request's id": (response, body, request) => respond(response, body, request, { id: "0" }),
  "another model": (response, body, request) => respond(response, body, request, { model_name: "other" }),
  "another shape": (response, body, request) => respond(response, body, request, {
    outputs: [{ name: "logits", datatype: "FP32", shape: [1, 2], data: [1, 2] }],
  }),
};
for (const [name, infer] of Object.entries(FAULTS)) {
  test(`it fails closed: ${name}`, async (t) => {
    const { seen, url } = await serving(t, { infer });
    const client = new Client(url, await loadBundle(`${url}/bundle/`, { ort: runtime() }), { timeoutMs: 300 });
    await assert.rejects(client.classify(IMAGE), EndpointError);
    assert.ok(!seen.paths.includes("/elsewhere"));
    assertSilent(seen);
  });
}

test("a token is not sent in the clear to another machine", async (t) => {
  const { url } = await serving(t);
  const bundle = await loadBundle(`${url}/bundle/`, { ort: runtime() });
  assert.throws(() => new Client("http://example.org", bundle, { token: "s3cret" }), EndpointError);
});
