// What the page shows of one image.

import { $, count, el, ms, paint, percent } from "./dom.js";

/** Return the likeliest classes as bars. */
export function bars(probabilities, labels, tone, shown = 3) {
  const order = labels.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
  const rows = order.slice(0, shown).map((i) => {
    const bar = el("i");
    bar.style.setProperty("--p", probabilities[i]);
    return el("li", {}, el("span", {}, labels[i]), bar, el("b", {}, percent(probabilities[i], 0)));
  });
  const list = el("ul", { class: "bars" }, ...rows);
  list.style.setProperty("--tone", `var(--${tone})`);
  return list;
}

/** Show a heading with bars, or nothing. */
export function prediction(place, title, probabilities, labels, tone) {
  $(place).replaceChildren(
    ...(probabilities === null ? [] : [el("h3", {}, title), bars(probabilities, labels, tone)]),
  );
}

/** Return the entries of a description list. */
export function facts(rows) {
  return rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
}

/** Show the milliseconds of each step. */
export function steps(times) {
  $("steps").replaceChildren(
    ...times.map(([name, value]) => el("li", {}, name, el("b", {}, value === null ? "none" : ms(value)))),
  );
}

/** Show an image; dim if it was not sent. */
export function image(place, image, { dim = false } = {}) {
  paint($(place), image);
  $(place).classList.toggle("dim", dim);
}

/** Show the request as it was sent, or that none was. */
export function inspect(request, hash) {
  $("inspector-sum").textContent = request === null ? "nothing was sent for this image" : `${count(request.body.length)} bytes`;
  if (request === null) {
    $("inspector-body").replaceChildren(el("p", { class: "faint" }, "No request was made for this image, not even for metadata."));
    return;
  }
  const { url, headers, body, headerLength } = request;
  const head = JSON.stringify(JSON.parse(new TextDecoder().decode(body.subarray(0, headerLength))), null, 1)
    .replace(/\[[\s\d,]+\]/g, (shape) => shape.replace(/\s+/g, " "));
  const lines = [`POST ${url}`, ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`), "", head];
  const save = el("button", { type: "button", click: () => download(body) }, "Save the body as a file");
  $("inspector-body").replaceChildren(
    el(
      "div",
      { class: "inspect" },
      el("div", {}, el("h3", {}, "Address, headers, and the body's JSON part"), el("pre", { tabindex: "0" }, lines.join("\n")),
        el("p", { class: "small faint mono" }, `SHA-256 ${hash}`), el("div", { class: "buttons" }, save)),
      el("div", {}, el("h3", {}, "The whole body, byte by byte"), el("pre", { tabindex: "0" }, hexDump(body))),
    ),
  );
}

/** Show the verdict of the audit in the bundle. */
export function audit(manifest) {
  const found = manifest.figures.audit;
  if (!found) {
    $("audit").replaceChildren(el("p", { class: "faint" }, "This bundle has no audit. Run: sfumato audit BUNDLE --classifier CLASSIFIER --budget standard"));
    return;
  }
  const { verdict, best, utility, gate, certificate, budget } = found;
  const stats = [
    [percent(utility?.accuracy_obfuscated ?? NaN), "correctly classified in the cloud, from the payload"],
    [`at least ${best?.excess_leakage?.toFixed(2) ?? "?"}`, "excess leakage: 0 is the label only, 1 the image"],
    [best?.attacker ?? "none", `best attacker, ${best?.threat ?? ""}`],
    gate && [percent(gate.offload_rate), `of the images are sent; ${percent(gate.accuracy_gated)} of all are correctly classified`],
    certificate?.rate_bits && [`${certificate.rate_bits.toFixed(1)} bits`, "about an image at most, for any attacker"],
  ].filter(Boolean);
  $("audit").replaceChildren(
    el("div", { class: "stats" }, ...stats.map(([value, says]) => el("div", {}, el("b", {}, value), el("span", {}, says)))),
    el("p", { class: "small" }, el("span", { class: "chip leaks" }, `finding: ${verdict.finding}`), ` at the budget "${budget.name}"`),
    el("h3", {}, "In the audit's own words"),
    el("blockquote", {}, ...verdict.sentences.map((sentence) => el("p", {}, sentence))),
  );
}

function hexDump(bytes) {
  const lines = [];
  for (let start = 0; start < bytes.length; start += 16) {
    const row = [...bytes.subarray(start, start + 16)];
    const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const text = row.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${start.toString(16).padStart(6, "0")}  ${hex.padEnd(47)}  ${text}`);
  }
  return lines.join("\n");
}

function download(body) {
  const url = URL.createObjectURL(new Blob([body], { type: "application/octet-stream" }));
  el("a", { href: url, download: "request-body.bin" }).click();
  URL.revokeObjectURL(url);
}
