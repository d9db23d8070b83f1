// The other ONNX files that the page runs: the deobfuscator as an attacker, and the classifier itself.

import * as ort from "/onnxruntime-web/ort.wasm.bundle.min.mjs";
import { BundleError, classLogits, sha256, softmax, tensorToImageData } from "/js/sfumato.js";

ort.env.wasm.numThreads = 1; // more would need a cross-origin isolated page
ort.env.wasm.wasmPaths = { wasm: "/onnxruntime-web/ort-wasm-simd-threaded.wasm" };
ort.env.logLevel = "error";

export { ort };

/**
 * Load the deobfuscator of a bundle; null if there is none.
 *
 * @returns {Promise<null | ((obfuscated) => Promise<{image: ImageData, milliseconds: number}>)>}
 */
export async function loadAttacker(bundle) {
  if (bundle.manifest.files["deobfuscator.onnx"] === undefined) return null;
  const run = await open(await bundle.file("deobfuscator.onnx"));
  const { height, width } = bundle.preprocessing;
  return async (obfuscated) => {
    const start = performance.now();
    const reconstructed = await run(obfuscated.tensor, obfuscated.shape);
    return { image: tensorToImageData(reconstructed, height, width), milliseconds: performance.now() - start };
  };
}

/** Return the name of a bundle's deobfuscator; other attackers may reconstruct more. */
export const attackerName = ({ recipe }) => (recipe.kind === "sketch" ? "codeword means" : "joint deobfuscator");

/**
 * Load the served classifier, to run it here on the image itself.
 *
 * @returns {Promise<(image: object) => Promise<{probabilities: number[], milliseconds: number}>>} takes RGB pixels of
 *   the classifier's size.
 */
export async function loadClassifier(url) {
  const manifest = await (await fetch(`${url}bundle.json`)).json();
  const bytes = new Uint8Array(await (await fetch(`${url}model.onnx`)).arrayBuffer());
  if ((await sha256(bytes)) !== manifest.files["model.onnx"]) throw new BundleError("model.onnx was changed or damaged");
  const run = await open(bytes);
  const { mean, std } = manifest.preprocessing;
  return async ({ width, height, data }) => {
    const start = performance.now();
    const area = width * height;
    const input = new Float32Array(3 * area);
    input.forEach((_, i) => {
      const c = Math.floor(i / area);
      input[i] = (data[3 * (i % area) + c] / 255 - mean[c]) / std[c];
    });
    const logits = classLogits(await run(input, [1, 3, height, width]), manifest.class_map);
    return { probabilities: softmax(logits), milliseconds: performance.now() - start };
  };
}

async function open(bytes) {
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return async (values, shape) => {
    const results = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", values, shape) });
    return results[session.outputNames[0]].data;
  };
}
