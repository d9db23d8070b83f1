// The page: takes an image, obfuscates it here, sends the payload, and shows what each side sees of it.

import { $, count, el, ms, paint, percent } from "./dom.js";
import { frontier, leakage } from "./frontier.js";
import { listen, loadSamples, markSample, showSamples } from "./inputs.js";
import { audit, bars, facts, image, inspect, prediction, steps } from "./views.js";
import { Client, EndpointError, loadBundle, loadImage, sha256, toImageData } from "/js/sfumato.js";

const state = {
  models: null, // models.js, which brings ONNX Runtime Web
  places: [], // the bundles' addresses
  manifests: [],
  bundles: [], // promises
  attackers: [], // promises
  classifier: null, // a promise
  chosen: 0,
  shown: null, // the image: {image, name, truth, place}
  requested: false, // whether anything was sent for it
  turn: 0, // of the image in progress; results of earlier ones are dropped
};

start().catch(problem);

async function start() {
  if (typeof WebAssembly !== "object") throw new Error("This browser has no WebAssembly, which runs the obfuscator. Nothing was sent.");
  const site = await json("/studio.json");
  state.places = site.bundles;
  state.classifierUrl = site.classifier;
  [state.models, ...state.manifests] = await Promise.all([import("./models.js"), ...site.bundles.map((url) => json(`${url}bundle.json`))]);
  offerBundles();
  const samples = await loadSamples(site.samples.labels);
  showSamples(samples, (sample) => show(sample.image, { name: sample.name, truth: sample.label, place: samples.indexOf(sample) }));
  listen((source, name) => show(source, { name }), problem);
  $("always").addEventListener("change", again);
  $("plain").addEventListener("change", again);
  $("inspector").open = matchMedia("(min-width: 900px)").matches;
  await showFirst(samples).catch(failed);
  await showFrontier();
  await loadTheRest();
}

/** Show the first sample that has to be sent, so that the page begins with something to see. */
async function showFirst(samples) {
  const bundle = await bundleAt(state.chosen);
  await bundle.obfuscate(samples[0].image); // the first run also initialises; its time is not shown
  let place = 0;
  for (const [i, sample] of samples.entries()) {
    const { obfuscated } = await bundle.decide(sample.image);
    if (obfuscated === null) continue;
    place = i;
    break;
  }
  const sample = samples[place];
  await show(sample.image, { name: sample.name, truth: sample.label, place });
}

/** Load what the first image did not need, so that the page works without the network from now on. */
async function loadTheRest() {
  $("status").textContent = "ready";
  $("status").classList.add("ready");
  for (const place of state.places.keys()) await attackerAt(place);
  await classifier();
  const tell = () => {
    $("status").textContent = navigator.onLine ? "ready, also offline" : "offline: all but the cloud's prediction works";
  };
  addEventListener("online", tell);
  addEventListener("offline", tell);
  tell();
}

const kept = (list, place, load) =>
  (list[place] ??= load().catch((error) => {
    list[place] = null; // to be tried again
    throw error;
  }));
const bundleAt = (place) => kept(state.bundles, place, () => loadBundle(state.places[place], { ort: state.models.ort }));
const attackerAt = (place) => kept(state.attackers, place, async () => state.models.loadAttacker(await bundleAt(place)));
const classifier = () => kept(state, "classifier", () => state.models.loadClassifier(state.classifierUrl));

/** Show an image of the visitor's, or a sample. */
async function show(source, { name, truth = null, place = null }) {
  const turn = ++state.turn;
  state.requested = false;
  clearProblem();
  markSample(place);
  $("flow").setAttribute("aria-busy", "true");
  try {
    const start = performance.now();
    const loaded = await loadImage(source);
    if (turn === state.turn) state.shown = { image: loaded, name, truth, place, decodeMs: performance.now() - start };
  } catch (error) {
    if (turn === state.turn) failed(error);
    return;
  }
  if (turn === state.turn) await again();
}

/** Process the image that is shown, from its pixels on. */
async function again() {
  const { shown } = state;
  if (shown === null) return;
  const turn = ++state.turn;
  clearProblem();
  $("flow").setAttribute("aria-busy", "true");
  try {
    await work(shown, () => turn !== state.turn);
  } catch (error) {
    if (turn === state.turn) failed(error);
  }
}

async function work(shown, outdated) {
  state.requested = false;
  const bundle = await bundleAt(state.chosen);
  const start = performance.now();
  const prepared = await bundle.prepare(shown.image);
  const prepareMs = shown.decodeMs + performance.now() - start;
  const decision = await bundle.decide(prepared, { gate: !$("always").checked });
  const local = decision.obfuscated === null;
  const obfuscated = decision.obfuscated ?? (await bundle.obfuscate(prepared)); // shown only; it is not sent
  if (outdated()) return;

  image("original", toImageData(prepared));
  const size = `${shown.image.width} x ${shown.image.height}`;
  $("original-note").textContent = `${shown.name}, ${size}${shown.truth ? `, true class: ${shown.truth}` : ""}`;
  prediction("device-prediction", "On-device prediction", decision.probabilities, bundle.labels, "local");
  if (bundle.gate) {
    const rule = `Sent only if its probability is below ${percent(bundle.gate.threshold)}.`;
    $("device-prediction").append(el("p", { class: "small faint" }, rule));
  }
  image("payload", obfuscated.preview(), { dim: local });
  showPayload(local, null);
  $("verdict").textContent = local ? "" : "Sending the payload.";

  const cloud = local ? null : await ask(bundle, obfuscated, outdated);
  if (outdated()) return;
  showPrediction(bundle, decision, cloud, shown.truth);
  const times = [
    ["decode and fit", prepareMs],
    [bundle.gate ? "obfuscate, and predict on-device" : "obfuscate", decision.milliseconds],
    ["round trip to the cloud", cloud?.roundTripMs ?? null],
  ];
  steps(times);

  // After the prediction, as these may have to be loaded first; without them, the rest still works.
  const optional = (load, run) => load().then((loaded) => loaded && run(loaded)).catch((error) => (outdated() || problem(error), null));
  const reconstructed = await optional(() => attackerAt(state.chosen), (attacker) => attacker(obfuscated));
  const plain = $("plain").checked ? await optional(classifier, (classify) => classify(prepared)) : null;
  if (outdated()) return;
  showReconstructed(bundle, reconstructed, local);
  prediction("plain-prediction", "The classifier on the original, run here", plain?.probabilities ?? null, bundle.labels, "accent");
  steps([
    ...times,
    ["reconstruct, as an attacker", reconstructed?.milliseconds ?? null],
    ...(plain ? [["classify the original here", plain.milliseconds]] : []),
  ]);
  $("flow").setAttribute("aria-busy", "false");
}

/** Send an image to the cloud, and show the request. */
async function ask(bundle, obfuscated, outdated) {
  let request = null;
  const client = new Client(location.origin, bundle, {
    onRequest: (made) => {
      request = made;
      state.requested = true;
    },
  });
  const reply = await client.send(obfuscated).catch((error) => {
    if (error instanceof EndpointError) return error;
    throw error;
  });
  const hash = request && (await sha256(request.body));
  if (!outdated()) {
    inspect(request, hash);
    showPayload(false, request && { bytes: request.body.length, hash });
  }
  return reply;
}

function showPayload(local, sent) {
  const chip = local ? ["not sent", "local"] : sent ? ["sent", "payload"] : ["sending", ""];
  $("sent").textContent = chip[0];
  $("sent").className = `chip ${chip[1]}`;
  if (local) inspect(null, "");
  $("payload-note").textContent = local
    ? "Handled on-device, so this is not sent. It is what would be sent otherwise."
    : "All that leaves this browser, shown as an image.";
  $("payload-facts").replaceChildren(
    ...facts([
      ["bytes", local ? "0" : sent ? count(sent.bytes) : "none yet"],
      ...(sent ? [["SHA-256", el("span", { class: "mono", title: sent.hash }, `${sent.hash.slice(0, 8)} ... ${sent.hash.slice(-8)}`)]] : []),
    ]),
  );
}

function showReconstructed(bundle, reconstructed, local) {
  const found = bundle.manifest.figures.audit?.best;
  image("reconstructed", reconstructed?.image ?? null, { dim: local });
  const name = state.models.attackerName(bundle.manifest);
  [$("gained").textContent, $("gained").className] = local ? ["nothing to attack", "chip local"] : ["reconstructed", "chip leaks"];
  $("reconstructed-note").textContent = reconstructed
    ? `By the ${name}, run here${local ? " on the image that was not sent" : ""}.`
    : "There is no deobfuscator to run here.";
  const rows = found
    ? [["best in the audit", `${found.attacker}, ${found.threat}`], ["error (MSE)", found.mse.toFixed(4)], ["excess leakage", `at least ${found.excess_leakage.toFixed(2)}`]]
    : [["audit", "none in this bundle"]];
  $("reconstructed-facts").replaceChildren(el("h3", {}, "Over all test images"), el("dl", {}, ...facts(rows)));
}

function showPrediction(bundle, decision, cloud, truth) {
  const judged = (label) => (truth === null ? "" : label === truth ? " (correct)" : ` (incorrect: the true class is ${truth})`);
  const unlike = decision.outOfDistribution ? [" ", el("span", { class: "leaks" }, "Unlike the training images: do not rely on this.")] : [];
  if (cloud === null) {
    const [label, sure] = best(decision.probabilities, bundle.labels);
    verdict([el("span", { class: "local" }, label), `${judged(label)}: predicted on-device, probability ${percent(sure, 0)}. Nothing was sent.`, ...unlike]);
    $("asked").textContent = "not asked";
    $("asked").className = "chip local";
    const send = el("button", { type: "button", click: () => $("always").click() }, "Send it anyway");
    $("cloud-prediction").replaceChildren(
      el("p", { class: "label" }, "Not needed"),
      el("p", { class: "faint small" }, `Images with an on-device probability of at least ${percent(bundle.gate.threshold)} are not sent.`),
      send,
    );
    return;
  }
  if (cloud instanceof EndpointError) {
    verdict([el("span", { class: "leaks" }, "The cloud did not respond"), ". The image is still here, and everything but the cloud's prediction works."]);
    $("asked").textContent = "no response";
    $("asked").className = "chip leaks";
    $("cloud-prediction").replaceChildren(
      el("p", { class: "small" }, cloud.message),
      el("button", { type: "button", click: again }, "Try again"),
    );
    return;
  }
  const bytes = `${count(cloud.payloadBytes)} obfuscated bytes`;
  verdict([el("span", { class: "payload" }, cloud.label), `${judged(cloud.label)}: predicted by the cloud, probability ${percent(cloud.probability, 0)}, from ${bytes}. The image was not sent.`, ...unlike]);
  $("asked").textContent = ms(cloud.roundTripMs);
  $("asked").className = "chip payload";
  const warning = cloud.fingerprint === "match" ? [] : [el("p", { class: "small note" }, cloud.fingerprint === "differs" ? "The server has another classifier than the one this obfuscator was trained for; its predictions may be incorrect." : "The server does not state which classifier it has.")];
  $("cloud-prediction").replaceChildren(el("p", { class: "label" }, cloud.label), bars(cloud.probabilities, bundle.labels, "payload", 5), ...warning);
}

function best(probabilities, labels) {
  const sure = Math.max(...probabilities);
  return [labels[probabilities.indexOf(sure)], sure];
}

const nameOf = (manifest) => manifest.recipe?.name ?? manifest.name;
const DIALS = { sketch: ["code_bits", "bits of the code"], obfuscator: ["privacy_weight", "privacy weight (lambda)"] };
const dialOf = ({ recipe }) => recipe?.[DIALS[recipe?.kind]?.[0]];

/** Offer the bundles, and a slider over those that differ in one setting. */
function offerBundles() {
  $("bundle").replaceChildren(...state.manifests.map((manifest, place) => el("option", { value: place }, nameOf(manifest))));
  $("bundle").addEventListener("change", ({ target }) => choose(Number(target.value)));
  $("dial").addEventListener("input", ({ target }) => choose(siblings()[Number(target.value)]));
  choose(0);
}

/** Return the places of the bundles of the chosen one's kind, ordered by that setting. */
function siblings() {
  const { kind } = state.manifests[state.chosen].recipe ?? {};
  return [...state.places.keys()]
    .filter((place) => state.manifests[place].recipe?.kind === kind && dialOf(state.manifests[place]) !== undefined)
    .sort((a, b) => dialOf(state.manifests[a]) - dialOf(state.manifests[b]));
}

function choose(place) {
  state.chosen = place;
  const manifest = state.manifests[place];
  $("bundle").value = String(place);
  const row = siblings();
  $("dial-label").hidden = row.length < 2;
  if (row.length > 1) {
    $("dial-name").textContent = DIALS[manifest.recipe.kind][1];
    $("dial").max = String(row.length - 1);
    $("dial").value = String(row.indexOf(place));
    $("dial-value").textContent = dialOf(manifest);
    $("dial").setAttribute("aria-valuetext", `${dialOf(manifest)}, ${nameOf(manifest)}`);
  }
  $("always").disabled = (manifest.gate ?? null) === null;
  audit({ figures: {}, ...manifest });
  state.plot?.select(nameOf(manifest));
  again();
}

/** Show the plot: all known audits, and those of the loaded bundles. */
async function showFrontier() {
  const { points } = await json("/frontier.json");
  const own = state.manifests.filter(({ figures }) => figures?.audit?.best && figures.audit.utility).map((manifest) => ({
    name: nameOf(manifest), accuracy: manifest.figures.audit.utility.accuracy_obfuscated,
    excess_leakage: manifest.figures.audit.best.excess_leakage, best_attacker: manifest.figures.audit.best.attacker,
    role: "this", budget: manifest.figures.audit.budget?.name,
  }));
  const names = new Set(own.map(({ name }) => name));
  const ours = (point) => (names.has(point.name.replace(/, gated$/, "")) ? { ...point, role: "own" } : point);
  const all = [...points.filter(({ name }) => !names.has(name)).map(ours), ...own];
  let picked = all.find(({ name }) => name === nameOf(state.manifests[state.chosen])) ?? all[0];
  const onPick = (point) => {
    picked = point;
    showPoint(point).catch(problem);
  };
  const draw = () => {
    const width = Math.min(760, Math.max(320, $("plot").clientWidth));
    state.plot = frontier(all, { width, zoom: $("zoom").checked, onPick });
    $("plot").replaceChildren(state.plot.element);
    state.plot.select(picked.name);
  };
  $("zoom").addEventListener("change", draw);
  addEventListener("resize", draw);
  draw();
  await showPoint(picked);
}

/** Show a point, with the current image if it can be computed here. */
async function showPoint(point) {
  const place = state.manifests.findIndex((manifest) => [nameOf(manifest), `${nameOf(manifest)}, gated`].includes(point.name));
  const rows = [
    ["accuracy", percent(point.accuracy)],
    ["excess leakage", leakage(point)],
    ...(point.best_attacker ? [["best attacker", point.best_attacker]] : []),
    ...(point.budget ? [["audited at", point.budget]] : []),
  ];
  const use = place >= 0 && place !== state.chosen ? [el("button", { type: "button", click: () => choose(place) }, "Use it above")] : [];
  $("point").replaceChildren(el("h2", {}, point.name), el("dl", {}, ...facts(rows)), ...(await images(point, place)), ...use);
}

async function images(point, place) {
  if (state.shown === null) return [];
  const bundle = await bundleAt(Math.max(0, place));
  const prepared = await bundle.prepare(state.shown.image);
  const original = toImageData(prepared);
  if (point.role === "identity") return [strip([original, "original"], [original, "payload: the image itself"], [original, "an attacker sees"])];
  if (point.role === "local") return [strip([original, "original"], [null, "no payload"], [null, "only the label"])];
  if (point.role === "gated") return [strip([original, "original"], [original, "payload: the image itself, if the gate sends it"], [original, "an attacker sees"])];
  if (place < 0) {
    const how = point.role === "baseline" ? `Make it with: sfumato baseline ${point.name}. Then start` : "Start";
    return [el("p", { class: "small faint" }, `Its bundle is not loaded, so its images cannot be shown. ${how} the studio with --obfuscator and the bundle's folder.`)];
  }
  const obfuscated = await bundle.obfuscate(prepared);
  const attacker = await attackerAt(place);
  const reconstructed = attacker && (await attacker(obfuscated)).image;
  return [strip([original, "original"], [obfuscated.preview(), "payload"], [reconstructed, reconstructed ? state.models.attackerName(bundle.manifest) : "no deobfuscator"])];
}

function strip(...parts) {
  const figures = parts.map(([image, caption]) => {
    const canvas = el("canvas", { role: "img", "aria-label": caption });
    paint(canvas, image);
    return el("figure", {}, canvas, el("figcaption", {}, caption));
  });
  return el("div", { class: "strip" }, ...figures);
}

function verdict(parts) {
  $("verdict").replaceChildren(...parts);
}

/** Fails closed: nothing of this image is sent, and nothing of an earlier one stays on the page. */
function failed(error) {
  for (const place of ["original", "payload", "reconstructed"]) image(place, null);
  for (const place of ["device-prediction", "plain-prediction", "payload-facts", "reconstructed-facts", "cloud-prediction", "steps"]) $(place).replaceChildren();
  for (const place of ["original-note", "payload-note", "reconstructed-note"]) $(place).textContent = "\u00a0";
  for (const place of ["sent", "asked"]) [$(place).textContent, $(place).className] = ["nothing", "chip"];
  if (!state.requested) inspect(null, "");
  state.shown = null;
  $("flow").setAttribute("aria-busy", "false");
  verdict([state.requested ? "Something went wrong. The image is still here." : "Nothing was sent."]);
  problem(error);
}

function problem(error) {
  $("problem").textContent = error.message;
  $("problem").hidden = false;
  if ($("status").textContent === "loading") $("status").textContent = "not ready";
}

function clearProblem() {
  $("problem").hidden = true;
}

async function json(url) {
  const reply = await fetch(url);
  if (!reply.ok) throw new Error(`${url} cannot be loaded (status ${reply.status}); is the studio still running?`);
  return reply.json();
}
