"""Times the obfuscator's training step beside the plain two-pass loop in the paper's order, in turn, in one run.

`python benchmarks/training_step.py` writes results/training-step.json

Both loops train the same networks on the same pictures against the same frozen ResNet20, in float32 on the
CPU, with the allocator setting that `sfumato train` arranges.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from timing import time_in_turn
from torch import nn

from sfumato.bundle import write_json
from sfumato.cli.train import keep_freed_memory
from sfumato.nets import Deobfuscator, Normalize, Obfuscator, build_classifier
from sfumato.provenance import provenance
from sfumato.training.objectives import classification_loss, reconstruction_loss
from sfumato.training.tasks import ObfuscationTask

BATCH, WARM_UP, ROUNDS, PRIVACY_WEIGHT = 128, 2, 9, 1.0


def plain_two_pass(images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """The loop as one would write it from the paper: one pass and one optimiser for each network."""
    obfuscator, deobfuscator = Obfuscator(order="paper"), Deobfuscator(order="paper")
    classifier = build_classifier("resnet20").eval().requires_grad_(False)
    normalize = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    hide = torch.optim.Adam(obfuscator.parameters(), lr=1e-3)
    seek = torch.optim.Adam(deobfuscator.parameters(), lr=1e-3)

    def step() -> None:
        obfuscated = obfuscator(images)
        hide.zero_grad()
        utility = classification_loss(classifier(normalize(obfuscated)), labels)
        (utility - PRIVACY_WEIGHT * reconstruction_loss(deobfuscator(obfuscated), images)).backward()
        hide.step()
        seek.zero_grad()
        reconstruction_loss(deobfuscator(obfuscated.detach()), images).backward()
        seek.step()

    return step


def ours(images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """The step that `sfumato train` makes."""
    task: nn.Module = ObfuscationTask(
        Obfuscator(),
        Deobfuscator(),
        build_classifier("resnet20"),
        Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        privacy_weight=PRIVACY_WEIGHT,
    ).train()
    task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=1e-3)
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        task(images, labels)["loss"].backward()
        optimizer.step()

    return step


def main(out: Path = Path("results/training-step.json")) -> None:
    keep_freed_memory()
    torch.manual_seed(0)
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    steps = {"plain_two_pass": plain_two_pass(images, labels), "ours": ours(images, labels)}
    times = time_in_turn(steps, warm_up=WARM_UP, rounds=ROUNDS)
    medians = {name: statistics.median(values) for name, values in times.items()}
    speedup = medians["plain_two_pass"] / medians["ours"]
    write_json(
        out,
        {
            "what": f"one training step of obfuscator and deobfuscator, batch {BATCH}, 3x32x32, frozen ResNet20",
            "speedup": speedup,
            "median_ms": medians,
            "pictures_per_s": {name: 1000 * BATCH / value for name, value in medians.items()},
            "all_ms": times,
            "threads": torch.get_num_threads(),
            "measured": provenance(),
        },
    )
    print(f"plain two-pass {medians['plain_two_pass']:.0f} ms, ours {medians['ours']:.0f} ms: {speedup:.2f}x -> {out}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
