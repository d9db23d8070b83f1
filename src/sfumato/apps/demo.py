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
from typing import Literal

import numpy as np
import numpy.typing as npt

from sfumato.apps.panel import Caption, draw_panel
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import DEOBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.lab_files import find_lab_file
from sfumato.artifacts.onnx_file import ClassifierFunction, OnnxFunction
from sfumato.device import Client, ObfuscatedImage, Obfuscator, Prediction, load_image, prepare
from sfumato.errors import BundleError, ServingError

Pixels = npt.NDArray[np.uint8]

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
        prediction: the final one: the device's if the image was handled on-device, else the server's.
    """

    image: str
    truth: str | None
    original: str
    prediction: Prediction

    def as_json(self) -> dict[str, object]:
        """Return plain values; "obfuscated" is the server's prediction, None if the image was handled on-device."""
        final = self.prediction
        return {
            "image": self.image,
            "truth": self.truth,
            "original": self.original,
            "obfuscated": final.label if final.predicted_by == "cloud" else None,
            "prediction": final.label,
            "predicted_by": final.predicted_by,
            "out_of_distribution": final.out_of_distribution,
            "probability": round(final.probability, 4),
            "payload_bytes": final.payload_bytes,
            "obfuscate_ms": round(final.obfuscate_ms, 3),
            "round_trip_ms": round(final.round_trip_ms, 3),
        }


@dataclass(frozen=True)
class Tally:
    """Counts for a group of images: all, those whose true label is known, and how many of these are correct.

    `correct_on_originals` counts those that the classifier classifies correctly on the originals.
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
        rows = [row for row in self.rows if predicted_by in (None, row.prediction.predicted_by)]
        known = [row for row in rows if row.truth is not None]
        return Tally(
            images=len(rows),
            known=len(known),
            correct=sum(row.prediction.label == row.truth for row in known),
            correct_on_originals=sum(row.original == row.truth for row in known),
        )

    def as_json(self) -> dict[str, object]:
        """Return plain values, with the tallies "on_device", "sent" and "over_all"."""
        tallies = {"on_device": self.tally("device"), "sent": self.tally("cloud"), "over_all": self.tally()}
        rows = [row.as_json() for row in self.rows]
        about = {"server": self.server, "gated": self.gated, "rows": rows, "panel": str(self.panel)}
        return {**about, **{name: asdict(tally) for name, tally in tallies.items()}}


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
    served.check_single_label("the demonstration")
    inputs: list[tuple[str, str | None, Pixels]] = [(str(path), None, load_image(path)) for path in images]
    inputs += [(sample.name, sample.label, sample.pixels) for sample in shipped.samples()]
    prepared = [prepare(pixels, bundle.preprocessing) for _, _, pixels in inputs]
    logits = ClassifierFunction(served)(served.preprocessing.normalize(np.stack(prepared)))
    originals = [served.labels[index] for index in logits.argmax(axis=1)]
    predictions: list[Prediction] = []
    with serving(served.path) as url, Client(url, bundle) as client:
        # The first request pays for loading everything; do not show its time.
        client.classify(next((p for _, _, p in inputs if client.classify_locally(p) is None), inputs[0][2]))
        for _, _, pixels in inputs:
            predictions.append(client.classify(pixels))
            on_row(len(predictions), len(inputs))
    rows = tuple(
        Row(name, truth, original, final)
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
    command = [sys.executable, "-m", "sfumato", "serve", str(classifier), "--port", "0", "--json"]
    # The user's token and settings are for other servers; the token would close this one to the demonstration.
    others = ("SFUMATO_TOKEN", "SFUMATO_SERVE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
    ):
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


def _save_panel(out: Path, bundle: Bundle, prepared: Sequence[npt.NDArray[np.float32]], rows: Sequence[Row]) -> Path:
    rows, batch = rows[:PANEL_COLUMNS], np.stack(prepared[:PANEL_COLUMNS])
    payload = Obfuscator(bundle)(batch)

    def unless_local(text: str, images: Sequence[Pixels]) -> list[Pixels | str]:
        return [text if r.prediction.predicted_by == "device" else image for r, image in zip(rows, images, strict=True)]

    previews = [np.asarray(ObfuscatedImage(tensor, bundle.preprocessing).preview()) for tensor in payload]
    sheet: list[tuple[str, Sequence[Pixels | str]]] = [
        ("original: never sent", _as_pixels(batch)),
        ("obfuscated: the payload (each scaled to the visible range)", unless_local("nothing\nis sent", previews)),
    ]
    if (deobfuscator := find_lab_file(bundle, DEOBFUSCATOR_ONNX)) is not None:  # it stays here
        reconstructed = _as_pixels(OnnxFunction(deobfuscator)(payload))
        coded = bundle.recipe.kind == "sketch"
        title = "reconstructed: the mean of the training images with the same code" if coded else _JOINT
        sheet.append((title, unless_local("nothing\nto reconstruct", reconstructed)))
    notes = {"device": "on-device", "cloud": "in the cloud"} if bundle.gate is not None else {}
    captions = [
        Caption(
            row.prediction.label, row.truth in (None, row.prediction.label), notes.get(row.prediction.predicted_by, "")
        )
        for row in rows
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
        draw_panel(sheet, captions).save(out / "panel.png")
    except OSError as error:
        raise BundleError(f"the panel cannot be written to {out}: {error.strerror or error}") from error
    return out / "panel.png"


def _as_pixels(images: npt.NDArray[np.float32]) -> list[Pixels]:
    """(N, 3, H, W) float in [0, 1] -> (H, W, 3) uint8 each."""
    return list((images.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1))
