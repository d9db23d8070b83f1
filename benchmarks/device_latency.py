"""Times the obfuscator beside ResNet18, each for one picture on one thread, in turn, in one run.

`python benchmarks/device_latency.py` writes results/device-latency.json

Both run under ONNX Runtime in float32. Weights are random: they do not change the time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timing import time_in_turn
from torch import nn

from sfumato.bundle import write_json
from sfumato.export import export_onnx
from sfumato.nets import Normalize, Obfuscator, build_classifier
from sfumato.onnxfile import OnnxFunction
from sfumato.provenance import provenance

WARM_UP, ROUNDS, REPEATS = 20, 60, 5


def main(out: Path = Path("results/device-latency.json")) -> None:
    torch.manual_seed(0)
    nets = {
        "obfuscator": nn.Sequential(Obfuscator(), Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))),
        "obfuscator_paper_order": nn.Sequential(
            Obfuscator(order="paper"), Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        ),
        "resnet18": build_classifier("resnet18"),
    }
    picture = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    functions: dict[str, OnnxFunction] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, net in nets.items():
            path = Path(folder) / f"{name}.onnx"
            export_onnx(net, path, torch.rand(4, 3, 32, 32), input_name="input", output_name="output")
            functions[name] = OnnxFunction(path, threads=1)
    calls = {name: partial(function, picture) for name, function in functions.items()}
    times = time_in_turn(calls, warm_up=WARM_UP, rounds=ROUNDS, repeats=REPEATS)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["obfuscator"] / medians["resnet18"]
    write_json(
        out,
        {
            "what": "one 3x32x32 picture, one thread, ONNX Runtime, float32, random weights",
            "obfuscator_share_of_resnet18": ratio,
            "median_ms": medians,
            "spread_ms": {name: [min(values), max(values)] for name, values in times.items()},
            "rounds": ROUNDS,
            "repeats_per_round": REPEATS,
            "measured": provenance(),
        },
    )
    print(f"obfuscator {medians['obfuscator']:.3f} ms, ResNet18 {medians['resnet18']:.2f} ms: {ratio:.1%} -> {out}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
