"""One training step of the paper's own classifiers, and of its obfuscator behind them, in float32 and "auto".

Used by `benchmarks/training_step.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from machine_limits import counted
from timing import time_in_turn
from torch import Tensor

from sfumato.lab.models import Deobfuscator, Normalize, Obfuscator, build_classifier, fold_norms
from sfumato.lab.models.precision import CPU, choose_precision
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.tasks import ClassifierTask

NETS, BATCH, WARM_UP, ROUNDS = ("resnet18", "vgg19"), 256, 1, 5
Step = Callable[[], None]


def full_size(reached: dict[str, Any], *, batch: int = BATCH, rounds: int = ROUNDS) -> dict[str, Any]:
    """Time the steps, alternating in one run.

    Args:
        reached: see `machine_limits.limits`.
        batch: images of a step.
        rounds: that are counted.

    Returns:
        For each network and each kind of training: the median step in milliseconds in both precisions, how many times
        as fast "auto" is, and the share of the machine's bfloat16 matrix product that it reaches.
    """
    torch.manual_seed(0)
    images = torch.rand(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    precision = choose_precision("auto", CPU)
    rows = []
    for net in NETS:
        for kind, make in (("classifier", _classifier), ("obfuscator", _obfuscator)):
            steps = {
                "float32": make(net, images, labels, bfloat16=False),
                "auto": make(net, images, labels, bfloat16=precision.dense_bfloat16),
            }
            times = time_in_turn(steps, warm_up=WARM_UP, rounds=rounds)
            medians = {name: statistics.median(values) for name, values in times.items()}
            operations = counted(steps["auto"]).operations
            rows.append(
                {
                    "net": net,
                    "trained": kind,
                    "median_ms": medians,
                    "all_ms": times,
                    "speedup": medians["float32"] / medians["auto"],
                    "gflop": operations / 1e9,
                    "share_of_matrix_product": {
                        "float32": _share(operations, medians["float32"], reached["gflop_per_s"]["float32"]),
                        "auto": _share(operations, medians["auto"], reached["gflop_per_s"]["bfloat16"]),
                    },
                }
            )
    return {"batch": batch, "rounds": rounds, "auto": str(precision), "rows": rows}


def _share(operations: int, time_ms: float, gflop_per_s: float) -> float:
    return operations / time_ms / 1e6 / gflop_per_s


def _classifier(net: str, images: Tensor, labels: Tensor, *, bfloat16: bool) -> Step:
    task = ClassifierTask(build_classifier(net), _normalize(), label_smoothing=0.1, bfloat16=bfloat16).train()
    task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return _step(task, optimizer, images, labels)


def _obfuscator(net: str, images: Tensor, labels: Tensor, *, bfloat16: bool) -> Step:
    task = ObfuscationTask(
        Obfuscator(),
        Deobfuscator(),
        fold_norms(build_classifier(net)),
        _normalize(),
        privacy_weight=1.0,
        bfloat16=bfloat16,
    ).train()
    task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [p for p in task.parameters() if p.requires_grad]
    return _step(task, torch.optim.Adam(trained, lr=1e-3, fused=True), images, labels)


def _step(task: torch.nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        task(images, labels)["loss"].backward()
        optimizer.step()

    return step


def _normalize() -> Normalize:
    return Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
