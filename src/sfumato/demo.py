"""The demonstration: a server as a process of its own, real pictures, and what each side sees."""

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
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato import shipped
from sfumato.bundle import CLASSIFIER_ONNX, DEOBFUSCATOR_ONNX, Bundle
from sfumato.device import Answer, Client, ObfuscatedPicture, Obfuscator, load_picture, prepare
from sfumato.errors import BundleError, ServingError
from sfumato.onnxfile import OnnxFunction
from sfumato.panel import Caption, draw_panel

START_TIMEOUT_S = 60.0
PANEL_COLUMNS = 12


@dataclass(frozen=True)
class Row:
    """One picture's line in the demonstration's table.

    Attributes:
        picture: its name.
        truth: the true label, or None if nobody knows.
        original: the classifier's answer on the original, computed here and never sent.
        obfuscated: the server's answer on the obfuscated picture.
        probability: that the server gives its answer, in [0, 1].
        payload_bytes: what was sent for it.
        obfuscate_ms: time of obfuscation.
        round_trip_ms: time until the answer was there.
    """

    picture: str
    truth: str | None
    original: str
    obfuscated: str
    probability: float
    payload_bytes: int
    obfuscate_ms: float
    round_trip_ms: float


@dataclass(frozen=True)
class Demonstration:
    """What the demonstration showed.

    Attributes:
        server: the address that was asked.
        rows: one per picture.
        panel: the panel picture's path.
    """

    server: str
    rows: tuple[Row, ...]
    panel: Path

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "panel": str(self.panel)}


def run_demo(
    pictures: Sequence[Path],
    out: Path,
    *,
    classifier: Path | None = None,
    obfuscator: Path | None = None,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> Demonstration:
    """Starts the server, sends it obfuscated pictures, and draws what each side saw.

    Args:
        pictures: picture files of the user's, besides the shipped ones.
        out: folder for the panel; created if needed.
        classifier: bundle to serve; the shipped one by default.
        obfuscator: bundle made for it; the shipped one by default.
        on_row: told after each picture how many are done, of how many.

    Raises:
        SfumatoError: a bundle, a picture, the server or the folder cannot be used.
    """
    served = Bundle.load(classifier or shipped.classifier_bundle(), kind="classifier")
    bundle = Bundle.load(obfuscator or shipped.obfuscator_bundle(), kind="obfuscator")
    inputs: list[tuple[str, str | None, npt.NDArray[np.uint8]]] = [
        (str(path), None, load_picture(path)) for path in pictures
    ]
    inputs += [(sample.name, sample.label, sample.pixels) for sample in shipped.samples()]
    prepared = [prepare(pixels, bundle.preprocessing) for _, _, pixels in inputs]
    beside = _answers_on_originals(served, prepared)
    answers: list[Answer] = []
    with serving(served.path) as url, Client(url, bundle) as client:
        client.classify(inputs[0][2])  # the first request pays for loading everything; do not show its time
        for _, _, pixels in inputs:
            answers.append(client.classify(pixels))
            on_row(len(answers), len(inputs))
    rows = tuple(
        Row(
            picture=name,
            truth=truth,
            original=original,
            obfuscated=answer.label,
            probability=round(answer.probability, 4),
            payload_bytes=answer.payload_bytes,
            obfuscate_ms=round(answer.obfuscate_ms, 3),
            round_trip_ms=round(answer.round_trip_ms, 3),
        )
        for (name, truth, _), original, answer in zip(inputs, beside, answers, strict=True)
    )
    return Demonstration(server=url, rows=rows, panel=_save_panel(out, bundle, prepared, rows))


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
    travels = Obfuscator(bundle)(batch)
    previews = [ObfuscatedPicture(tensor, bundle.preprocessing).preview() for tensor in travels]
    restored = OnnxFunction(bundle.file(DEOBFUSCATOR_ONNX))(travels)
    panel = draw_panel(
        [
            ("original: stays on the device", [_as_pixels(picture) for picture in batch]),
            (
                "obfuscated: what travels (each stretched to the visible range)",
                [np.asarray(preview) for preview in previews],
            ),
            (
                "restored by the deobfuscator it was trained against (a later attacker may restore more)",
                [_as_pixels(picture) for picture in restored],
            ),
        ],
        [Caption(row.obfuscated, row.truth in (None, row.obfuscated)) for row in rows[shown]],
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        panel.save(out / "panel.png")
    except OSError as error:
        raise BundleError(f"the panel cannot be written to {out}: {error.strerror or error}") from error
    return out / "panel.png"


def _as_pixels(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(3, H, W) float in [0, 1] -> (H, W, 3) uint8."""
    return (picture.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
