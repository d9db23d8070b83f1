// The plot of accuracy against excess leakage, whose points can be picked.

import { percent, svg } from "./dom.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [46, 18, 16, 46];
const NAMED = { this: 1, local: -1, identity: -1 }; // whose names are always shown, and whether below or above
const SHOWN_AS = { identity: "no obfuscator" };
const ZOOM = { right: 0.22, low: 0.86, high: 0.925 };

/**
 * Draw the plot.
 *
 * @param {object[]} points as `sfumato frontier --json` gives them.
 * @param {{width: number, zoom: boolean, onPick: (point: object) => void}} options width: in CSS pixels.
 * @returns {{element: SVGElement, select: (name: string) => void}}
 */
export function frontier(points, { width, zoom, onPick }) {
  const measured = points.filter(({ excess_leakage: leakage, role }) => leakage !== null && role !== "paper");
  const heights = points.map(({ accuracy }) => accuracy);
  const whole = { right: 1, low: Math.floor(10 * Math.min(...heights)) / 10, high: Math.max(...heights) + 0.02 };
  const frame = scale(zoom ? ZOOM : whole, width, Math.round(Math.min(430, 0.9 * width)));
  const label = "Obfuscators by accuracy and excess leakage";
  const root = svg("svg", { viewBox: `0 0 ${frame.width} ${frame.height}`, role: "listbox", "aria-label": label });
  const paper = points.filter(({ role }) => role === "paper").map(({ accuracy }) => accuracy);
  root.append(...axes(frame), clipped(frame, background(frame, measured, paper)));
  const ordered = measured
    .filter((point) => point.excess_leakage <= frame.right && point.accuracy >= frame.low)
    .sort((a, b) => a.excess_leakage - b.excess_leakage || a.accuracy - b.accuracy);
  const dots = ordered.map((point) => dot(point, frame));
  const top = svg("g", { class: "top", "aria-hidden": "true" }); // the chosen one again, above all others
  const select = (chosen, focus = false) => {
    dots.forEach((node, i) => {
      node.setAttribute("aria-selected", String(i === chosen));
      node.setAttribute("tabindex", i === Math.max(0, chosen) ? "0" : "-1");
    });
    top.replaceChildren(...(chosen >= 0 ? [dots[chosen].cloneNode(true)] : []));
    for (const name of ["role", "tabindex"]) top.firstChild?.removeAttribute(name);
    if (focus) dots[chosen].focus();
  };
  const pick = (place) => {
    select(place, true);
    onPick(ordered[place]);
  };
  dots.forEach((node, place) => {
    node.addEventListener("click", () => pick(place));
    node.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const wanted = { Home: 0, End: dots.length - 1, Enter: place, " ": place }[event.key] ?? (step && place + step);
      if (wanted === undefined || dots[wanted] === undefined) return;
      event.preventDefault();
      pick(wanted);
    });
  });
  root.append(...dots, top);
  select(-1);
  return { element: root, select: (name) => select(ordered.findIndex((point) => point.name === name)) };
}

/** Return a point's excess leakage as text: an attacker's is a lower bound, that of the image in the clear is exact. */
export function leakage({ role, excess_leakage: value }) {
  return ["local", "identity", "gated"].includes(role) ? value.toFixed(2) : `at least ${value.toFixed(2)}`;
}

function scale({ right, low, high }, width, height) {
  return {
    right, low, high, width, height,
    x: (leakage) => LEFT + (Math.max(0, leakage) / right) * (width - LEFT - RIGHT),
    y: (accuracy) => TOP + ((high - accuracy) / (high - low)) * (height - TOP - BOTTOM),
  };
}

function axes({ right, low, high, width, height, x, y }) {
  const parts = [];
  const step = high - low > 0.2 ? 0.1 : 0.01;
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick < high; tick += step) {
    parts.push(svg("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }));
    parts.push(svg("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, percent(tick, 0)));
  }
  const across = right > 0.5 ? 0.2 : 0.05;
  for (let tick = 0; tick <= right + 1e-9; tick += across) {
    parts.push(svg("text", { x: x(tick), y: height - BOTTOM + 20, "text-anchor": "middle" }, tick.toFixed(across < 0.1 ? 2 : 1)));
  }
  const long = "excess leakage, at least: 0 = only the label, 1 = the image";
  const caption = width > 480 ? long : "excess leakage, at least";
  parts.push(svg("text", { x: (LEFT + width - RIGHT) / 2, y: height - 6, "text-anchor": "middle" }, caption));
  return parts;
}

function clipped({ width, height }, parts) {
  const area = svg("rect", { x: LEFT, y: TOP, width: width - LEFT - RIGHT, height: height - TOP - BOTTOM });
  return svg("g", { "clip-path": "url(#plot-area)" }, svg("clipPath", { id: "plot-area" }, area), ...parts);
}

function background({ low, width, x, y }, measured, paper) {
  const best = (role) => measured.filter((p) => p.role === role).sort((a, b) => b.accuracy - a.accuracy)[0];
  const [start, end] = [best("local"), best("identity")];
  const parts = [];
  if (start && end) {
    const line = `${x(start.excess_leakage)},${y(start.accuracy)} ${x(end.excess_leakage)},${y(end.accuracy)}`;
    parts.push(svg("polygon", { class: "below", points: `${line} ${x(1)},${y(low)} ${x(0)},${y(low)}` }));
  }
  if (paper.length) {
    const [top, bottom] = [y(Math.max(...paper)), y(Math.min(...paper))];
    const says = width > 480 ? "shaded: the paper's accuracy; its leakage was not measured" : "shaded: the paper";
    parts.push(svg("rect", { class: "paper", x: LEFT, y: top, width: width - LEFT - RIGHT, height: bottom - top }));
    parts.push(svg("text", { x: width - RIGHT - 6, y: bottom + 14, "text-anchor": "end" }, says));
  }
  if (start && end) {
    const curve = [start, ...measured.filter((p) => p.role === "gated").sort((a, b) => a.excess_leakage - b.excess_leakage)];
    parts.push(svg("line", { class: "mix", x1: x(0), y1: y(start.accuracy), x2: x(1), y2: y(end.accuracy) }));
    parts.push(svg("polyline", { class: "gated", points: curve.map((p) => `${x(p.excess_leakage)},${y(p.accuracy)}`).join(" ") }));
  }
  return parts;
}

function dot(point, { width, x, y }) {
  const [cx, cy] = [x(point.excess_leakage), y(point.accuracy)];
  const left = cx > 0.62 * width;
  const name = SHOWN_AS[point.role] ?? point.name;
  const label = `${name}: accuracy ${percent(point.accuracy)}, excess leakage ${leakage(point)}`;
  const kind = { gated: "gatedpoint", own: "this" }[point.role] ?? point.role;
  const radius = { this: 7, gated: 4 }[point.role] ?? 6;
  const up = NAMED[point.role];
  return svg(
    "g",
    { class: `dot ${up ? "named" : ""}`, role: "option", "aria-label": label, "aria-selected": "false", tabindex: "-1" },
    svg("title", {}, label),
    svg("circle", { class: "hit", cx, cy, r: 13 }),
    svg("circle", { class: kind, cx, cy, r: radius }),
    svg("text", { x: cx + (left ? -10 : 10), y: cy + (up ?? 0) * 12 + 4, "text-anchor": left ? "end" : "start" }, name),
  );
}
