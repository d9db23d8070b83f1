"""The demonstration: a server in a process of its own, real images, and what each side sees."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sfumato.apps.panel import Caption, draw_panel
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, DEOBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.device import Client, ObfuscatedImage, Obfuscator, Prediction, load_image, prepare
from sfumato.errors import BundleError, ServingError

START_TIMEOUT_S = 60.0
PANEL_COLUMNS = 12
_JOINT = "reconstructed by the joint deobfuscator (an adaptive attacker may reconstruct more)"


@dataclass(frozen=True)
class Row:
    """One image's line in the demonstration's table.

    Attributes:
        image: its name.
        truth: the true label, or None if it is not known.
        original: the classifier's prediction on the original, computed here and never sent.
        obfuscated: the server's prediction on the obfuscated image; None if the image was handled on-device.
        prediction: the final one: the device's if the image was handled on-device, else the server's.
        predicted_by: "device" or "cloud".
        probability: of `prediction`, in [0, 1].
        payload_bytes: what was sent for it; 0 if it was handled on-device.
        obfuscate_ms: time of obfuscation, including the on-device prediction.
        round_trip_ms: time from request to response; 0 if it was handled on-device.
    """

    image: str
    truth: str | None
    original: str
    obfuscated: str | None
    prediction: str
    predicted_by: Literal["device", "cloud"]
    probability: float
    payload_bytes: int
    obfuscate_ms: float
    round_trip_ms: float


@dataclass(frozen=True)
class Tally:
    """Counts for a group of images.

    Attributes:
        images: how many there are.
        known: of how many the true label is known.
        correct: how many of these were correctly classified.
        correct_on_originals: how many of these the classifier classifies correctly on the originals.
    """

    images: int
    known: int
    correct: int
    correct_on_originals: int


@dataclass(frozen=True)
class Demonstration:
    """The demonstration's result: the server's address, whether the bundle has a gate, one row per image, the panel."""

    server: str
    gated: bool
    rows: tuple[Row, ...]
    panel: Path

    def tally(self, predicted_by: Literal["device", "cloud"] | None = None) -> Tally:
        """Count the images classified there, or all."""
        rows = [row for row in self.rows if predicted_by in (None, row.predicted_by)]
        known = [row for row in rows if row.truth is not None]
        return Tally(
            images=len(rows),
            known=len(known),
            correct=sum(row.prediction == row.truth for row in known),
            correct_on_originals=sum(row.original == row.truth for row in known),
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values, with the tallies "on_device", "sent" and "over_all"."""
        tallies = {"on_device": self.tally("device"), "sent": self.tally("cloud"), "over_all": self.tally()}
        return {**asdict(self), "panel": str(self.panel), **{name: asdict(tally) for name, tally in tallies.items()}}


def run_demo(
    images: Sequence[Path],
    out: Path,
    *,
    classifier: Path | None = None,
    obfuscator: Path | None = None,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> Demonstration:
    """Start the server, classify images with it, and write a panel of what each side saw.

    Args:
        images: image files, in addition to the shipped ones.
        out: folder for the panel; created if needed.
        classifier: bundle to serve; the shipped one by default.
        obfuscator: bundle trained for it; the shipped one by default.
        on_row: called after each image with how many are done, of how many.

    Raises:
        SfumatoError: a bundle, an image, the server or the folder cannot be used.
    """
    served = Bundle.load(classifier or shipped.classifier_bundle(), kind="classifier")
    bundle = Bundle.load(obfuscator or shipped.obfuscator_bundle(), kind="obfuscator")
    inputs: list[tuple[str, str | None, npt.NDArray[np.uint8]]] = [
        (str(path), None, load_image(path)) for path in images
    ]
    inputs += [(sample.name, sample.label, sample.pixels) for sample in shipped.samples()]
    prepared = [prepare(pixels, bundle.preprocessing) for _, _, pixels in inputs]
    originals = _predictions_on_originals(served, prepared)
    predictions: list[Prediction] = []
    with serving(served.path) as url, Client(url, bundle) as client:
        # The first request pays for loading everything; do not show its time.
        client.classify(next((p for _, _, p in inputs if client.classify_locally(p) is None), inputs[0][2]))
        for _, _, pixels in inputs:
            predictions.append(client.classify(pixels))
            on_row(len(predictions), len(inputs))
    rows = tuple(
        Row(
            image=name,
            truth=truth,
            original=original,
            obfuscated=final.label if final.predicted_by == "cloud" else None,
            prediction=final.label,
            predicted_by=final.predicted_by,
            probability=round(final.probability, 4),
            payload_bytes=final.payload_bytes,
            obfuscate_ms=round(final.obfuscate_ms, 3),
            round_trip_ms=round(final.round_trip_ms, 3),
        )
        for (name, truth, _), original, final in zip(inputs, originals, predictions, strict=True)
    )
    panel = _save_panel(out, bundle, prepared, rows)
    return Demonstration(server=url, gated=bundle.gate is not None, rows=rows, panel=panel)


@contextmanager
def serving(classifier: Path) -> Iterator[str]:
    """Run `sfumato serve` in a process of its own, on a free port of this machine, and yield its address.

    Raises:
        ServingError: it did not start; the message has the last line of its log.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "sfumato", "serve", str(classifier), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=errors,
            # The user's token is for other servers, and would close this one to the demonstration.
            env={name: value for name, value in os.environ.items() if name != "SFUMATO_TOKEN"},
        )
        try:
            assert process.stdout is not None
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                line = process.stdout.readline() if selector.select(START_TIMEOUT_S) else b""
            if not line:
                errors.seek(0)
                words = errors.read().decode(errors="replace").strip().splitlines()
                raise ServingError(f"the server did not start: {words[-1] if words else 'no response in time'}")
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _predictions_on_originals(classifier: Bundle, prepared: Sequence[npt.NDArray[np.float32]]) -> list[str]:
    logits = OnnxFunction(classifier.file(CLASSIFIER_ONNX))(classifier.preprocessing.normalize(np.stack(prepared)))
    return [classifier.labels[index] for index in logits.argmax(axis=1)]


def _save_panel(out: Path, bundle: Bundle, prepared: Sequence[npt.NDArray[np.float32]], rows: Sequence[Row]) -> Path:
    shown = slice(0, PANEL_COLUMNS)
    batch = np.stack(prepared[shown])
    payload = Obfuscator(bundle)(batch)
    on_device = [row.predicted_by == "device" for row in rows[shown]]
    previews = [np.asarray(ObfuscatedImage(tensor, bundle.preprocessing).preview()) for tensor in payload]
    sheet: list[tuple[str, Sequence[npt.NDArray[np.uint8] | str]]] = [
        ("original: never sent", [_as_pixels(image) for image in batch]),
        (
            "obfuscated: the payload (each scaled to the visible range)",
            _unless(on_device, "nothing\nis sent", previews),
        ),
    ]
    if DEOBFUSCATOR_ONNX in bundle.files:
        reconstructed = [_as_pixels(image) for image in OnnxFunction(bundle.file(DEOBFUSCATOR_ONNX))(payload)]
        coded = bundle.recipe.kind == "sketch"
        title = "reconstructed: the mean of the training images with the same code" if coded else _JOINT
        sheet.append((title, _unless(on_device, "nothing\nto reconstruct", reconstructed)))
    notes = {"device": "on-device", "cloud": "in the cloud"} if bundle.gate is not None else {}
    captions = [
        Caption(row.prediction, row.truth in (None, row.prediction), notes.get(row.predicted_by, ""))
        for row in rows[shown]
    ]
    panel = draw_panel(sheet, captions)
    try:
        out.mkdir(parents=True, exist_ok=True)
        panel.save(out / "panel.png")
    except OSError as error:
        raise BundleError(f"the panel cannot be written to {out}: {error.strerror or error}") from error
    return out / "panel.png"


def _unless(
    on_device: Sequence[bool], text: str, images: Sequence[npt.NDArray[np.uint8]]
) -> list[npt.NDArray[np.uint8] | str]:
    return [text if local else image for local, image in zip(on_device, images, strict=True)]


def _as_pixels(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(3, H, W) float in [0, 1] -> (H, W, 3) uint8."""
    return (image.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
