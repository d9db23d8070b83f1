"""Compare networks for the device: parameters, multiply-accumulates and time, and train one of them briefly.

`python benchmarks/device_nets.py` writes results/device-nets.json
`python benchmarks/device_nets.py --train paper-squeeze --epochs 20` trains a candidate, or a network of the zoo such as
resnet-local, as recipes/cifar10-device-paper.toml says, to runs/device-nets/paper-squeeze; interrupted, it resumes when
it is called again.

Each is timed under ONNX Runtime for one 3x32x32 image on one thread, in float32 and in 8-bit integers, alternating in
one run, and compared with the full-size ResNet18. Weights are random, as they do not change the time. What is counted
is the thread's processor time; minima are little disturbed by other work on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timing import time_in_turn
from torch import nn

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.files import write_json
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.provenance import provenance
from sfumato.lab.data import ImageSet
from sfumato.lab.export.int8 import quantize_file
from sfumato.lab.export.onnx import export_onnx
from sfumato.lab.models import CLASSIFIERS, Normalize, Sketcher, SketchGraph, build_classifier, cost
from sfumato.lab.models.device_nets import DEVICE_NETS, DeviceNet, DeviceShape
from sfumato.lab.runs.trainings import finish_training
from sfumato.lab.training import Run, load_recipe

_NANO, _PAPER, _LARGE = (DEVICE_NETS[f"device-{name}"] for name in ("nano", "paper", "large"))
CANDIDATES: dict[str, DeviceShape] = {
    "nano": _NANO,
    "nano-unbranched": replace(_NANO, branches=False),
    "nano-squeeze": replace(_NANO, squeeze=True),
    "nano-full-stem": DeviceShape(((1, 16), (1, 16), (2, 32), (2, 48))),
    "nano-late": DeviceShape(((1, 16), (2, 32), (2, 80)), halved=True),
    "nano-deep": DeviceShape(((2, 16), (2, 24), (4, 48)), halved=True),
    "paper": _PAPER,
    "paper-unbranched": replace(_PAPER, branches=False),
    "paper-squeeze": replace(_PAPER, squeeze=True),
    "paper-early": DeviceShape(((2, 16), (4, 32), (4, 64), (2, 72))),
    "paper-wide": DeviceShape(((1, 32), (2, 48), (4, 64), (2, 88))),
    "paper-deep": DeviceShape(((1, 24), (4, 24), (6, 56), (3, 64))),
    "large": _LARGE,
    "large-squeeze": replace(_LARGE, squeeze=True),
    "large-early": DeviceShape(((3, 32), (3, 48), (4, 96), (2, 144))),
    "large-late": DeviceShape(((1, 32), (4, 48), (4, 96), (4, 160))),
}
"""By name: the preset's that they compete with, and how they differ. Unbranched ones take the same time when folded."""
REFERENCES = ("resnet18", "resnet-local", "resnet20")
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_CALIBRATED_ON = 8


def main(out: Path = Path("results/device-nets.json"), rounds: int = 60, only: tuple[str, ...] = ()) -> None:
    torch.manual_seed(0)
    normalize = Normalize(_MEAN, _STD)
    nets: dict[str, nn.Module] = {name: build_classifier(name) for name in REFERENCES}
    timed = {name: shape for name, shape in CANDIDATES.items() if shape.branches and (not only or name in only)}
    nets |= {name: DeviceNet(shape, 10) for name, shape in timed.items()}
    nets["paper-hard-swish"] = _with_hard_swish(DeviceNet(_PAPER, 10))
    costs = {name: cost(net) for name, net in nets.items()}
    nets = {name: nn.Sequential(normalize, net) for name, net in nets.items()}
    sketchers = {f"sketch with {trunk}": Sketcher(trunk=trunk) for trunk in ("resnet", *DEVICE_NETS)}  # type: ignore[arg-type]
    costs |= {name: cost(net) for name, net in sketchers.items()}
    nets |= {name: SketchGraph(net, normalize, temperature=1.0) for name, net in sketchers.items()}
    pixels = torch.randint(0, 256, (_CALIBRATED_ON, 3, 32, 32), dtype=torch.uint8)
    images = ImageSet(pixels, torch.zeros(_CALIBRATED_ON, dtype=torch.int64), ("any",), "random", "random")
    image = pixels[:1].numpy().astype(np.float32) / np.float32(255)
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[], object]] = {}
        for name, net in nets.items():
            file = Path(folder) / f"{name}.onnx"
            outputs = ("obfuscated", "logits", "code") if isinstance(net, SketchGraph) else "logits"
            export_onnx(net, file, pixels[:2].float() / 255, input_name="image", output_name=outputs)
            quantize_file(file, integers := file.with_suffix(".int8"), images)
            for kind, path in (("float32", file), ("int8", integers)):
                calls[f"{name} {kind}"] = partial(OnnxFunction(path, threads=1).all, image)
        times = time_in_turn(calls, warm_up=5, rounds=rounds, repeats=3, settle=2, clock=time.thread_time)
    medians, least = ({key: take(values) for key, values in times.items()} for take in (statistics.median, min))
    base, base_least = medians["resnet18 float32"], least["resnet18 float32"]
    rows = {
        name: {
            "parameters": costs[name].params,
            "multiply_accumulates": costs[name].macs,
            "median_ms": medians[f"{name} float32"],
            "least_ms": least[f"{name} float32"],
            "share_of_resnet18": medians[f"{name} float32"] / base,
            "share_of_resnet18_by_minima": least[f"{name} float32"] / base_least,
            "int8_time_of_float32": medians[f"{name} int8"] / medians[f"{name} float32"],
            "int8_time_of_float32_by_minima": least[f"{name} int8"] / least[f"{name} float32"],
        }
        for name in nets
    }
    write_json(
        out,
        {
            "what": "one 3x32x32 image, one thread, ONNX Runtime; processor time of the thread; random weights",
            "candidates": rows,
            "rounds": rounds,
            "measured": provenance().to_json(),
        },
    )
    print("| network | parameters | MACs, millions | ms | of ResNet18's time | int8, of float32's time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print(
            f"| {name} | {row['parameters']:,} | {row['multiply_accumulates'] / 1e6:.2f} | {row['least_ms']:.3f} "
            f"| {row['share_of_resnet18_by_minima']:.2%} | {row['int8_time_of_float32_by_minima']:.2f} |"
        )


def train(name: str, epochs: int, changes: list[str], folder: Path) -> None:
    """Train a candidate, or a network of the zoo, as the recipe of the preset says that it competes with."""
    short = [f"training.epochs={epochs}", f"training.int8_epochs={epochs // 10}"]
    preset = name.partition("-")[0] if name in CANDIDATES else "paper"
    recipe = load_recipe(Path(f"recipes/cifar10-device-{preset}.toml"), short + changes)
    if name in CANDIDATES:
        CLASSIFIERS[name] = partial(DeviceNet, CANDIDATES[name])
    recipe = recipe.model_copy(update={"name": folder.name, "architecture": name})
    finish_training(recipe, Run(folder), say=print)
    figures = Bundle.load(Run(folder).bundle).figures
    print(f"{folder.name}: {figures.accuracy_plain:.2%} of {figures.test_images} test images")


def _with_hard_swish(net: nn.Module) -> nn.Module:
    for name, child in list(net.named_modules()):
        if isinstance(child, nn.ReLU):
            net.set_submodule(name, nn.Hardswish())
    return net


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/device-nets.json"))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", nargs="*", default=(), help="candidates to time, beside those of other families")
    parser.add_argument("--train", metavar="NAME", help="train this candidate instead")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as `sfumato train` takes it")
    parser.add_argument("--runs", type=Path, default=Path("runs/device-nets"))
    parser.add_argument("--name", help="of the run, where one candidate is trained in several ways")
    given = parser.parse_args()
    if given.train:
        train(given.train, given.epochs, given.set, given.runs / (given.name or given.train))
    else:
        main(given.out, given.rounds, tuple(given.only))
