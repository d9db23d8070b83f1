"""The demonstration: a server as a process of its own, real images, and what each side sees."""

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
from sfumato.device import Answer, Client, ObfuscatedImage, Obfuscator, load_image, prepare
from sfumato.errors import BundleError, ServingError

START_TIMEOUT_S = 60.0
PANEL_COLUMNS = 12
_JOINT = "reconstructed by the deobfuscator it was trained against (a later attacker may reconstruct more)"


@dataclass(frozen=True)
class Row:
    """One image's line in the demonstration's table.

    Attributes:
        image: its name.
        truth: the true label, or None if nobody knows.
        original: the classifier's answer on the original, computed here and never sent.
        obfuscated: the server's answer on the obfuscated image; None if the image stayed on the device.
        answer: the answer that counts: the device's own if the image stayed, else the server's.
        answered_by: "device" if the image stayed, else "cloud".
        probability: that `answer` is given, in [0, 1].
        payload_bytes: what was sent for it; 0 if it stayed.
        obfuscate_ms: time of obfuscation, the device's own answer included.
        round_trip_ms: time until the server's answer was there; 0 if it was not asked.
    """

    image: str
    truth: str | None
    original: str
    obfuscated: str | None
    answer: str
    answered_by: Literal["device", "cloud"]
    probability: float
    payload_bytes: int
    obfuscate_ms: float
    round_trip_ms: float


@dataclass(frozen=True)
class Tally:
    """How a group of images was answered.

    Attributes:
        images: how many there are.
        known: of how many the true label is known.
        right: how many of these were answered right.
        right_on_originals: how many of these the classifier answers right on the originals.
    """

    images: int
    known: int
    right: int
    right_on_originals: int


@dataclass(frozen=True)
class Demonstration:
    """What the demonstration showed.

    Attributes:
        server: the address that was asked.
        gated: whether the bundle has a gate, so that images may stay on the device.
        rows: one per image.
        panel: the panel image's path.
    """

    server: str
    gated: bool
    rows: tuple[Row, ...]
    panel: Path

    def tally(self, answered_by: Literal["device", "cloud"] | None = None) -> Tally:
        """Counts the images answered there, or all."""
        rows = [row for row in self.rows if answered_by in (None, row.answered_by)]
        known = [row for row in rows if row.truth is not None]
        return Tally(
            images=len(rows),
            known=len(known),
            right=sum(row.answer == row.truth for row in known),
            right_on_originals=sum(row.original == row.truth for row in known),
        )

    def as_json(self) -> dict[str, Any]:
        """As plain values, with the tallies "on_device", "sent" and "over_all"."""
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
    """Starts the server, sends it the obfuscated images that have to be sent, and draws what each side saw.

    Args:
        images: image files of the user's, besides the shipped ones.
        out: folder for the panel; created if needed.
        classifier: bundle to serve; the shipped one by default.
        obfuscator: bundle made for it; the shipped one by default.
        on_row: told after each image how many are done, of how many.

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
    beside = _answers_on_originals(served, prepared)
    answers: list[Answer] = []
    with serving(served.path) as url, Client(url, bundle) as client:
        # The first request pays for loading everything; do not show its time. What stays makes no request.
        client.classify(next((p for _, _, p in inputs if client.classify_at_home(p) is None), inputs[0][2]))
        for _, _, pixels in inputs:
            answers.append(client.classify(pixels))
            on_row(len(answers), len(inputs))
    rows = tuple(
        Row(
            image=name,
            truth=truth,
            original=original,
            obfuscated=answer.label if answer.answered_by == "cloud" else None,
            answer=answer.label,
            answered_by=answer.answered_by,
            probability=round(answer.probability, 4),
            payload_bytes=answer.payload_bytes,
            obfuscate_ms=round(answer.obfuscate_ms, 3),
            round_trip_ms=round(answer.round_trip_ms, 3),
        )
        for (name, truth, _), original, answer in zip(inputs, beside, answers, strict=True)
    )
    panel = _save_panel(out, bundle, prepared, rows)
    return Demonstration(server=url, gated=bundle.gate is not None, rows=rows, panel=panel)


@contextmanager
def serving(classifier: Path) -> Iterator[str]:
    """Runs `sfumato serve` as a process of its own, on a free port of this machine, and gives its address.

    Raises:
        ServingError: it did not start; the message has its own last words.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "sfumato", "serve", str(classifier), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=errors,
            # The user's token is for servers of his, and would close this one to the demonstration.
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
                raise ServingError(f"the server did not start: {words[-1] if words else 'no answer in time'}")
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


def _answers_on_originals(classifier: Bundle, prepared: Sequence[npt.NDArray[np.float32]]) -> list[str]:
    logits = OnnxFunction(classifier.file(CLASSIFIER_ONNX))(classifier.preprocessing.normalize(np.stack(prepared)))
    return [classifier.labels[index] for index in logits.argmax(axis=1)]


def _save_panel(out: Path, bundle: Bundle, prepared: Sequence[npt.NDArray[np.float32]], rows: Sequence[Row]) -> Path:
    shown = slice(0, PANEL_COLUMNS)
    batch = np.stack(prepared[shown])
    payload = Obfuscator(bundle)(batch)
    stays = [row.answered_by == "device" for row in rows[shown]]
    previews = [np.asarray(ObfuscatedImage(tensor, bundle.preprocessing).preview()) for tensor in payload]
    sheet: list[tuple[str, Sequence[npt.NDArray[np.uint8] | str]]] = [
        ("original: stays on the device", [_as_pixels(image) for image in batch]),
        (
            "obfuscated: the payload (each stretched to the visible range)",
            _unless(stays, "nothing\nis sent", previews),
        ),
    ]
    if DEOBFUSCATOR_ONNX in bundle.files:
        reconstructed = [_as_pixels(image) for image in OnnxFunction(bundle.file(DEOBFUSCATOR_ONNX))(payload)]
        coded = bundle.recipe.get("kind") == "sketch"
        title = "reconstructed: the mean of the training images with the same code" if coded else _JOINT
        sheet.append((title, _unless(stays, "nothing\nto reconstruct", reconstructed)))
    notes = {"device": "on the device", "cloud": "in the cloud"} if bundle.gate is not None else {}
    captions = [
        Caption(row.answer, row.truth in (None, row.answer), notes.get(row.answered_by, "")) for row in rows[shown]
    ]
    panel = draw_panel(sheet, captions)
    try:
        out.mkdir(parents=True, exist_ok=True)
        panel.save(out / "panel.png")
    except OSError as error:
        raise BundleError(f"the panel cannot be written to {out}: {error.strerror or error}") from error
    return out / "panel.png"


def _unless(
    stays: Sequence[bool], text: str, images: Sequence[npt.NDArray[np.uint8]]
) -> list[npt.NDArray[np.uint8] | str]:
    return [text if at_home else image for at_home, image in zip(stays, images, strict=True)]


def _as_pixels(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(3, H, W) float in [0, 1] -> (H, W, 3) uint8."""
    return (image.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
