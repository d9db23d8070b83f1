// The Open Inference Protocol, version 2, with its binary tensor extension: what this client needs of it.
//
// A body is JSON, followed by the bytes of the tensors that announce a `binary_data_size`; the HTTP header
// `Inference-Header-Content-Length` says where the JSON ends. No input is trusted.

import { EndpointError } from "./errors.js";

export const HEADER_LENGTH = "Inference-Header-Content-Length";
const ARRAYS = { FP32: Float32Array, FP64: Float64Array };

/**
 * Encode one float tensor as a request.
 *
 * @param {string} input the input's name.
 * @param {number[]} shape
 * @param {Float32Array} values as many as the shape has.
 * @param {string | null} output the output wanted; null takes whatever comes.
 * @param {string} id of the request, which the response repeats; "" sends none.
 * @returns {{body: Uint8Array, headers: Record<string, string>, headerLength: number}}
 */
export function encodeRequest(input, shape, values, output, id = "") {
  const tensor = { name: input, datatype: "FP32", shape, parameters: { binary_data_size: values.byteLength } };
  const asked =
    output === null
      ? { parameters: { binary_data_output: true }, inputs: [tensor] }
      : { inputs: [tensor], outputs: [{ name: output, parameters: { binary_data: true } }] };
  const head = id === "" ? asked : { id, ...asked };
  const text = new TextEncoder().encode(ascii(JSON.stringify(head)));
  const body = new Uint8Array(text.length + values.byteLength);
  body.set(text);
  const view = new DataView(body.buffer, text.length);
  values.forEach((value, i) => view.setFloat32(4 * i, value, true)); // the wire is little-endian on every machine
  const headers = { "Content-Type": "application/octet-stream", [HEADER_LENGTH]: String(text.length) };
  return { body, headers, headerLength: text.length };
}

/**
 * Decode the floating-point outputs of a response.
 *
 * @param {Uint8Array} body
 * @param {string | null} headerLength the value of `Inference-Header-Content-Length`; null if it was absent.
 * @param {{id: string, model: string} | null} request what it has to be the response to; null checks neither.
 * @returns {{name: string, shape: number[], values: Float32Array | Float64Array | number[]}[]}
 * @throws {EndpointError} anything about it is not as the protocol says, or it is of another request or model.
 */
export function decodeResponse(body, headerLength, request = null) {
  const length = headerLength === null ? body.length : Number(headerLength);
  if (!Number.isInteger(length) || length < 0 || length > body.length) {
    throw new EndpointError(`the response is malformed: ${HEADER_LENGTH} does not fit its ${body.length} bytes`);
  }
  const head = parseObject(body.subarray(0, length), "the response");
  // Servers that repeat no id are believed: the protocol asks for it, and some do not.
  if (request !== null && ![undefined, "", request.id].includes(head.id)) {
    throw new EndpointError("the response has the id of another request");
  }
  if (request !== null && head.model_name !== request.model) {
    throw new EndpointError(`the response is not of the model ${request.model}, which was asked`);
  }
  if (!Array.isArray(head.outputs) || !head.outputs.length) throw new EndpointError("the response has no outputs");
  let offset = length;
  const outputs = head.outputs.map((output) => {
    const size = output?.parameters?.binary_data_size;
    const tensor = decodeTensor(output, size === undefined ? null : body.subarray(offset, offset + size));
    offset += size ?? 0;
    return tensor;
  });
  if (offset !== body.length) throw new EndpointError("the response is malformed: its bytes do not add up");
  return outputs;
}

/**
 * Parse a JSON object.
 *
 * @throws {EndpointError} not UTF-8, not JSON, or no object.
 */
export function parseObject(bytes, what) {
  let value;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw new EndpointError(`${what} is not valid JSON`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new EndpointError(`${what} must be a JSON object`);
  }
  return value;
}

function decodeTensor(output, bytes) {
  const { name, datatype, shape } = output ?? {};
  const Values = ARRAYS[datatype];
  if (typeof name !== "string" || !Array.isArray(shape) || !shape.every((n) => Number.isInteger(n) && n >= 0)) {
    throw new EndpointError("an output of the response lacks its name or its shape");
  }
  if (Values === undefined) throw new EndpointError(`the response holds ${datatype}; FP32 or FP64 was expected`);
  const count = shape.reduce((a, b) => a * b, 1);
  if (bytes === null) {
    const values = Array.isArray(output.data) ? output.data.flat(Infinity) : [];
    if (values.length !== count || !values.every((value) => typeof value === "number")) {
      throw new EndpointError(`output "${name}" does not hold the ${count} numbers of its shape`);
    }
    return { name, shape, values };
  }
  if (bytes.length !== count * Values.BYTES_PER_ELEMENT) {
    throw new EndpointError(`output "${name}" does not hold the ${count} numbers of its shape`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const read = datatype === "FP32" ? (i) => view.getFloat32(4 * i, true) : (i) => view.getFloat64(8 * i, true);
  return { name, shape, values: Values.from({ length: count }, (_, i) => read(i)) };
}

/** Escape everything outside ASCII in JSON, so that its length in bytes is its length in characters. */
function ascii(text) {
  return text.replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
