// The few things that the page's parts share for making elements.

/** The element with that id. */
export const $ = (id) => document.getElementById(id);

/**
 * Makes an element.
 *
 * @param {string} tag
 * @param {Record<string, unknown>} attributes "class" and other attributes; functions become listeners of that event.
 * @param {...(Node | string)} children
 */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/** Shows pixels on a canvas, which takes their size; null empties it. */
export function paint(canvas, image) {
  canvas.classList.toggle("none", image === null);
  canvas.width = image?.width ?? 1;
  canvas.height = image?.height ?? 1;
  if (image !== null) canvas.getContext("2d").putImageData(image, 0, 0);
}

export const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
export const count = (value) => value.toLocaleString("en");
export const ms = (value) => `${value.toFixed(1)} ms`;

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}
