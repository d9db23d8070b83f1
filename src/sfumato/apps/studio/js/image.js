// Preprocessing: decode an image and fit it to the obfuscator's input; the browser's side of `sfumato.device.image`.
//
// The browser decodes, so a JPEG file may differ by single levels from what Pillow decodes. From the decoded pixels on,
// everything is computed as in Python, to the same integers.

import { ImageError } from "./errors.js";

export const MAX_PIXELS = 50_000_000;
const BITS = 22; // of the resampling weights' fraction: a sum of 8-bit pixels times weights stays below 2^31

/**
 * Decode an image to RGB: upright, without metadata, transparent ones composited on white.
 *
 * @param {Blob | ImageData | ImageBitmap | HTMLVideoElement | HTMLCanvasElement | OffscreenCanvas |
 *   {width: number, height: number, data: Uint8Array}} source a file's content, what a canvas can draw, or RGB pixels.
 * @returns {Promise<{width: number, height: number, data: Uint8Array}>} data: (H, W, 3), row by row.
 * @throws {ImageError} not an image that this browser can decode, or too large.
 */
export async function loadImage(source) {
  if (source?.data instanceof Uint8Array) return checkedRgb(source);
  if (typeof ImageData === "function" && source instanceof ImageData) return fromRgba(source); // Node has none
  if (source instanceof Blob) {
    const bitmap = await decode(source);
    try {
      return draw(bitmap, bitmap.width, bitmap.height);
    } finally {
      bitmap.close();
    }
  }
  const width = source?.videoWidth ?? source?.width;
  const height = source?.videoHeight ?? source?.height;
  if (typeof width !== "number" || typeof height !== "number") {
    throw new ImageError("an image must be a Blob, ImageData, something a canvas can draw, or RGB pixels");
  }
  return draw(source, width, height);
}

/**
 * Fit the shorter side with antialiased bilinear resampling and crop the centre; an image of that size is returned.
 *
 * Source: the triangle filter as Pillow's `Image.resize(..., BILINEAR, box=...)` applies it to 8-bit pixels: first
 * along rows, then along columns, with weights in fixed point and a rounded 8-bit image in between.
 *
 * @param {{width: number, height: number, data: Uint8Array}} image RGB.
 * @param {number} height rows wanted.
 * @param {number} width columns wanted.
 */
export function fit(image, height, width) {
  if (image.height === height && image.width === width) return image;
  const scale = Math.min(image.height / height, image.width / width);
  const top = (image.height - height * scale) / 2;
  const left = (image.width - width * scale) / 2;
  const across = weights(image.width, left, left + width * scale, width);
  const down = weights(image.height, top, top + height * scale, height);
  const narrow = resampleRows(image, across, width);
  return resampleColumns(narrow, down, height);
}

/**
 * Convert RGB bytes to the obfuscator's input.
 *
 * @param {{width: number, height: number, data: Uint8Array}} image RGB.
 * @returns {Float32Array} (3, H, W) in [0, 1], exactly `pixel / 255`.
 */
export function toTensor({ width, height, data }) {
  const area = width * height;
  const tensor = new Float32Array(3 * area);
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) tensor[c * area + i] = data[3 * i + c] / 255;
  }
  return tensor;
}

/** Convert RGB bytes to what a canvas shows. */
export function toImageData({ width, height, data }) {
  const shown = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    shown.data.set(data.subarray(3 * i, 3 * i + 3), 4 * i);
    shown.data[4 * i + 3] = 255;
  }
  return shown;
}

async function decode(blob) {
  try {
    return await createImageBitmap(blob, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new ImageError("this is not an image that the browser can decode; try a PNG or JPEG file");
  }
}

function draw(source, width, height) {
  checkSize(width, height);
  try {
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(source, 0, 0);
    return fromRgba(context.getImageData(0, 0, width, height));
  } catch {
    throw new ImageError(`the browser cannot read the pixels (${width} x ${height}); try a smaller image`);
  }
}

function fromRgba({ width, height, data }) {
  checkSize(width, height);
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    const alpha = data[4 * i + 3];
    for (let c = 0; c < 3; c++) rgb[3 * i + c] = Math.round((data[4 * i + c] * alpha + 255 * (255 - alpha)) / 255);
  }
  return { width, height, data: rgb };
}

function checkedRgb({ width, height, data }) {
  checkSize(width, height);
  if (data.length !== 3 * width * height) {
    throw new ImageError(`${width} x ${height} RGB pixels are ${3 * width * height} bytes; got ${data.length}`);
  }
  return { width, height, data };
}

function checkSize(width, height) {
  if (!(width >= 1 && height >= 1)) throw new ImageError(`the image has no pixels (${width} x ${height})`);
  if (width * height > MAX_PIXELS) {
    throw new ImageError(`${width} x ${height} is more than ${MAX_PIXELS} pixels; make the image smaller first`);
  }
}

/** For each output pixel, the first input pixel that it sees and the fixed-point weights from there on. */
function weights(size, begin, end, count) {
  const from = Math.fround(Math.max(0, begin)); // Pillow keeps the box in single precision
  const scale = Math.fround(Math.fround(Math.min(size, end)) - from) / count;
  const reach = Math.max(scale, 1); // half the triangle's base; wider when shrinking, which is the antialiasing
  return Array.from({ length: count }, (_, place) => {
    const centre = from + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(size, Math.trunc(centre + reach + 0.5));
    const heights = [];
    for (let i = first; i < last; i++) heights.push(Math.max(0, 1 - Math.abs((i - centre + 0.5) * (1 / reach))));
    const sum = heights.reduce((a, b) => a + b, 0);
    return { first, taps: Int32Array.from(heights, (h) => Math.trunc((h / sum) * 2 ** BITS + 0.5)) };
  });
}

function resampleRows({ width, height, data }, across, columns) {
  const out = new Uint8Array(3 * columns * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < columns; x++) {
      weigh(data, 3 * (y * width + across[x].first), 3, across[x].taps, out, 3 * (y * columns + x));
    }
  }
  return { width: columns, height, data: out };
}

function resampleColumns({ width, data }, down, rows) {
  const out = new Uint8Array(3 * width * rows);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < width; x++) {
      weigh(data, 3 * (down[y].first * width + x), 3 * width, down[y].taps, out, 3 * (y * width + x));
    }
  }
  return { width, height: rows, data: out };
}

function weigh(data, start, step, taps, out, place) {
  for (let c = 0; c < 3; c++) {
    let sum = 1 << (BITS - 1);
    for (let i = 0; i < taps.length; i++) sum += data[start + i * step + c] * taps[i];
    out[place + c] = Math.min(255, Math.max(0, sum >> BITS));
  }
}
