"""What 8-bit integers would do to the shipped obfuscators: time, accuracy, and whose answer or code changes.

`python benchmarks/quantize.py` writes results/quantized.json, and the quantised files to runs/quantized. Each is
an obfuscator of its own, to be audited as one: `sfumato audit runs/quantized/cifar10-resnet20-sketch-U8S8.onnx
--classifier src/sfumato/shipped/cifar10-resnet20 --budget attributes --share 0.5`

Static quantisation as ONNX Runtime's documentation advises it for convolutions (QDQ, unsigned activations, one scale
for each output channel), calibrated on training pictures, which are not measured with. `SFUMATO_CIFAR10` names the
pictures.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from timing import time_in_turn

from sfumato import shipped
from sfumato.bundle import CLASSIFIER_ONNX, OBFUSCATOR_ONNX, write_json
from sfumato.data import ImageSet, load_images
from sfumato.onnxfile import OnnxFunction
from sfumato.provenance import provenance

CALIBRATED_ON, BATCH = 500, 250
KEPT = Path("runs/quantized")
KINDS = {"U8U8": QuantType.QUInt8, "U8S8": QuantType.QInt8}
Array = npt.NDArray[Any]


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pictures: Array, name: str) -> None:
        self._rest = iter([{name: pictures[start : start + 1]} for start in range(len(pictures))])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rest, None)


def main(out: Path = Path("results/quantized.json"), test_pictures: int = 10_000, rounds: int = 60) -> None:
    calibration = _pictures(load_images("cifar10", "train"), CALIBRATED_ON)[0]
    pictures, labels = _pictures(load_images("cifar10", "test"), test_pictures)
    classifier = OnnxFunction(shipped.classifier_bundle() / CLASSIFIER_ONNX, threads=1)
    results: dict[str, Any] = {}
    for bundle in (shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle()):
        plain = bundle / OBFUSCATOR_ONNX
        KEPT.mkdir(parents=True, exist_ok=True)
        files = {"float32": plain} | {kind: _quantized(plain, bundle.name, calibration, kind) for kind in KINDS}
        functions = {name: OnnxFunction(file, threads=1) for name, file in files.items()}
        calls = {name: partial(function, pictures[:1]) for name, function in functions.items()}
        times = time_in_turn(calls, warm_up=5, rounds=rounds, repeats=5, settle=2, clock=time.thread_time)
        outputs = {name: _all(function, pictures) for name, function in functions.items()}
        megabytes = {name: file.stat().st_size / 1e6 for name, file in files.items()}
        results[bundle.name] = {
            name: {
                "megabytes": megabytes[name],
                "median_ms": statistics.median(times[name]),
                "time_of_float32": statistics.median(times[name]) / statistics.median(times["float32"]),
                "time_of_float32_by_minima": min(times[name]) / min(times["float32"]),
                **_differences(outputs[name], outputs["float32"], labels, classifier),
            }
            for name in files
        }
        for name, row in results[bundle.name].items():
            print(bundle.name, name, {key: round(value, 4) for key, value in row.items()})
    write_json(
        out,
        {
            "what": "the shipped obfuscators in 8-bit integers, one picture, one thread, ONNX Runtime; processor time",
            "calibrated_on": CALIBRATED_ON,
            "test_pictures": len(pictures),
            "obfuscators": results,
            "measured": provenance(),
        },
    )


def _pictures(images: ImageSet, count: int) -> tuple[Array, Array]:
    return images.images[:count].numpy().astype(np.float32) / np.float32(255), images.labels[:count].numpy()


def _quantized(plain: Path, name: str, calibration: Array, kind: str) -> Path:
    prepared, out = KEPT / "prepared.onnx", KEPT / f"{name}-{kind}.onnx"
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(out),
        _Pictures(calibration, "picture"),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        reduce_range=kind == "U8S8",
        activation_type=QuantType.QUInt8,
        weight_type=KINDS[kind],
    )
    return out


def _all(function: OnnxFunction, pictures: Array) -> list[Array]:
    parts = [function.all(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _differences(outputs: list[Array], plain: list[Array], labels: Array, classifier: OnnxFunction) -> dict[str, float]:
    answers, before = (_all(classifier, drawn)[0].argmax(axis=1) for drawn in (outputs[0], plain[0]))
    row = {
        "accuracy_obfuscated": float((answers == labels).mean()),
        "answers_changed": float((answers != before).mean()),
        "drawing_mean_difference": float(np.abs(outputs[0] - plain[0]).mean()),
    }
    if len(plain) > 1:
        own, own_before = (found[1].argmax(axis=1) for found in (outputs, plain))
        row["accuracy_device"] = float((own == labels).mean())
        row["device_answers_changed"] = float((own != own_before).mean())
        row["codes_changed"] = float((outputs[2] != plain[2]).any(axis=1).mean())
    return row


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]), *map(int, sys.argv[2:4]))
