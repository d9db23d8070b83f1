"""Measure the shipped obfuscators in 8-bit integers: time, accuracy, and changed predictions and codes.

`python benchmarks/quantize.py` writes results/quantized.json, and the quantised files to runs/quantized. Each is
an obfuscator of its own, to be audited as one: `sfumato audit runs/quantized/cifar10-resnet20-sketch-U8S8.onnx
--classifier src/sfumato/artifacts/shipped/cifar10-resnet20 --budget attributes --budget-scale 0.5`

As `sfumato export --to int8` does it (U8S8), and with unsigned weights beside; calibrated on training images, which are
not measured with. `SFUMATO_CIFAR10` names the images.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer
from timing import time_in_turn

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, OBFUSCATOR_ONNX
from sfumato.artifacts.files import write_json
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.provenance import provenance
from sfumato.lab.data import ImageSet, load_images
from sfumato.lab.export.int8 import CALIBRATED_ON, differences, quantize_file

KEPT = Path("runs/quantized")
KINDS = {"U8U8": False, "U8S8": True}
"""Whether the weights are signed."""


def main(out: Path = Path("results/quantized.json"), test_images: int = 10_000, rounds: int = 60) -> None:
    """Measure, and write the results file."""
    calibration = load_images("cifar10", "train").subset(CALIBRATED_ON)
    test = load_images("cifar10", "test").subset(test_images)
    image = test.images[:1].numpy().astype(np.float32) / np.float32(255)
    classifier = OnnxFunction(shipped.classifier_bundle() / CLASSIFIER_ONNX, threads=1)
    results: dict[str, Any] = {}
    for bundle in (shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle()):
        plain = bundle / OBFUSCATOR_ONNX
        KEPT.mkdir(parents=True, exist_ok=True)
        files = {"float32": plain} | {kind: _quantized(plain, bundle.name, calibration, kind) for kind in KINDS}
        functions = {name: OnnxFunction(file, threads=1) for name, file in files.items()}
        calls = {name: partial(function, image) for name, function in functions.items()}
        times = time_in_turn(calls, warm_up=5, rounds=rounds, repeats=5, settle=2, clock=time.thread_time)
        megabytes = {name: file.stat().st_size / 1e6 for name, file in files.items()}
        results[bundle.name] = {
            name: {
                "megabytes": megabytes[name],
                "median_ms": statistics.median(times[name]),
                "time_of_float32": statistics.median(times[name]) / statistics.median(times["float32"]),
                "time_of_float32_by_minima": min(times[name]) / min(times["float32"]),
                **_accuracies(function, classifier, test),
                **differences(function, functions["float32"], classifier, test).to_json(),
            }
            for name, function in functions.items()
        }
        for name, row in results[bundle.name].items():
            print(bundle.name, name, {key: round(value, 4) for key, value in row.items()})
    write_json(
        out,
        {
            "what": "the shipped obfuscators in 8-bit integers, one image, one thread, ONNX Runtime; processor time",
            "calibrated_on": CALIBRATED_ON,
            "test_images": len(test),
            "obfuscators": results,
            "measured": provenance().to_json(),
        },
    )


def _accuracies(obfuscator: OnnxFunction, classifier: OnnxFunction, test: ImageSet) -> dict[str, float]:
    correct = defaultdict(list)
    for batch, labels in test.scaled_batches():
        payload, *own = obfuscator.all(batch)
        correct["accuracy_obfuscated"].append(classifier(payload).argmax(axis=1) == labels)
        if own:
            correct["accuracy_device"].append(own[0].argmax(axis=1) == labels)
    return {name: float(np.concatenate(parts).mean()) for name, parts in correct.items()}


def _quantized(plain: Path, name: str, calibration: ImageSet, kind: str) -> Path:
    out = KEPT / f"{name}-{kind}.onnx"
    quantize_file(plain, out, calibration, signed_weights=KINDS[kind])
    return out


if __name__ == "__main__":
    typer.run(main)
