// Where images come from: files that are chosen, dropped or pasted, the camera, and the samples.

import { $, el, paint } from "./dom.js";
import { ImageError, loadImage, toImageData } from "/js/sfumato.js";

const SIDE = 32; // of one sample on the sheet

/**
 * Listen for images.
 *
 * @param {(source: Blob | ImageBitmap, name: string) => void} onImage
 * @param {(error: Error) => void} onProblem
 */
export function listen(onImage, onProblem) {
  const file = (found) => found && onImage(found, found.name || "the image");
  $("file").addEventListener("change", ({ target }) => {
    file(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", ({ clipboardData }) => file(clipboardData.files[0]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (relatedTarget === null) $("drop").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    const found = event.dataTransfer.files[0];
    if (found) file(found);
    else onProblem(new ImageError("no file was dropped; drop an image file"));
  });
  listenToCamera(onImage, onProblem);
}

/**
 * Read the sheet of samples.
 *
 * @param {string[]} labels their true classes.
 * @returns {Promise<{name: string, label: string, image: object}[]>} with RGB pixels, exactly those of the sheet.
 */
export async function loadSamples(labels) {
  const sheet = await loadImage(await (await fetch("/samples.png")).blob());
  const columns = sheet.width / SIDE;
  return labels.map((label, place) => {
    const data = new Uint8Array(3 * SIDE * SIDE);
    for (let y = 0; y < SIDE; y++) {
      const start = 3 * ((Math.floor(place / columns) * SIDE + y) * sheet.width + (place % columns) * SIDE);
      data.set(sheet.data.subarray(start, start + 3 * SIDE), 3 * SIDE * y);
    }
    const name = `test-${String(place).padStart(4, "0")}`;
    return { name, label, image: { width: SIDE, height: SIDE, data } };
  });
}

/** Show the samples as buttons. */
export function showSamples(samples, onSample) {
  const buttons = samples.map((sample) => {
    const canvas = el("canvas");
    paint(canvas, toImageData(sample.image));
    const label = `Sample ${sample.name}, ${sample.label}`;
    return el("button", { type: "button", "aria-label": label, title: sample.label, "aria-pressed": "false", click: () => onSample(sample) }, canvas);
  });
  $("samples").replaceChildren(...buttons);
}

/** Mark the sample that is shown; null if none is. */
export function markSample(place) {
  [...$("samples").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === place)));
}

function listenToCamera(onImage, onProblem) {
  const [dialog, video] = [$("camera-dialog"), $("video")];
  const stop = () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  };
  $("camera").addEventListener("click", async () => {
    if (!navigator.mediaDevices?.getUserMedia) {
      onProblem(new ImageError("this browser allows no camera on this address; use https or localhost, or choose a file"));
      return;
    }
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      $("shoot").disabled = true;
      dialog.showModal();
      await video.play();
      $("shoot").disabled = false; // the camera shows something
    } catch (error) {
      onProblem(new ImageError(cameraProblem(error)));
    }
  });
  $("shoot").addEventListener("click", async () => {
    onImage(await createImageBitmap(video), "the camera's image");
    dialog.close();
  });
  $("camera-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", stop);
}

function cameraProblem({ name }) {
  if (name === "NotAllowedError") return "the camera was not allowed; allow it in the browser's settings, or choose a file";
  if (name === "NotFoundError") return "no camera was found; choose a file or a sample instead";
  return "the camera cannot be used now, perhaps another program has it; choose a file or a sample instead";
}
