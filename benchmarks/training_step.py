"""Time the obfuscator's training step and the plain two-pass loop in the paper's order, and where the time goes.

`python benchmarks/training_step.py` writes results/training-step.json; `--quick` tries it and writes nothing.

All loops train the same networks on the same images against the same frozen ResNet20 on the CPU, in turn, in one
run, with the allocator setting that `sfumato train` arranges. Beside the step that `sfumato train` makes stand the same
one with batch norms in passes of their own, the same one in bfloat16, and the same one with `training.compile`, whose
compilation, with nothing kept from an earlier one, is timed apart. Each part of the step is timed alone. What the step
has to compute and to move is counted, and compared with what this machine reaches on the same threads. Then come
the paper's ResNet18 and VGG19 (`benchmarks/full_size.py`): classifier and obfuscator, float32 and "auto".
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import typer
from full_size import full_size
from machine_limits import Counted, counted, limits
from timing import time_in_turn
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance
from sfumato.cli.memory import keep_freed_memory
from sfumato.lab.models import Deobfuscator, Normalize, Obfuscator, build_classifier, fold_norms
from sfumato.lab.models.obfuscator import ConvNormAct
from sfumato.lab.models.precision import CPU, choose_precision, cpu_features
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.objectives import classification_loss, reconstruction_loss

BATCH, WARM_UP, ROUNDS, PRIVACY_WEIGHT = 128, 2, 9, 1.0
OPERATORS = 12
Step = Callable[[], None]


def normalize() -> Normalize:
    return Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def plain_two_pass(images: Tensor, labels: Tensor) -> Step:
    """The loop as one would write it from the paper: one pass and one optimiser for each network."""
    obfuscator, deobfuscator = Obfuscator(order="paper"), Deobfuscator(order="paper")
    classifier = build_classifier("resnet20").eval().requires_grad_(False)
    normalized = normalize()
    obfuscator_optimizer = torch.optim.Adam(obfuscator.parameters(), lr=1e-3)
    seek = torch.optim.Adam(deobfuscator.parameters(), lr=1e-3)

    def step() -> None:
        obfuscated = obfuscator(images)
        obfuscator_optimizer.zero_grad()
        utility = classification_loss(classifier(normalized(obfuscated)), labels)
        (utility - PRIVACY_WEIGHT * reconstruction_loss(deobfuscator(obfuscated), images)).backward()
        obfuscator_optimizer.step()
        seek.zero_grad()
        reconstruction_loss(deobfuscator(obfuscated.detach()), images).backward()
        seek.step()

    return norms_apart(step)  # what the networks do by themselves is no part of a plain loop


def norms_apart(step: Step) -> Step:
    """Return the same step with every batch norm in a separate pass."""

    def apart() -> None:
        with patch.object(ConvNormAct, "_widens", lambda self, x: False):
            step()

    return apart


def ours(
    images: Tensor, labels: Tensor, *, precision: str = "auto", folded: bool = True, compiled: bool = False
) -> Step:
    """The step that `sfumato train` makes, in its precision, in float32, or in bfloat16 throughout."""
    classifier = build_classifier("resnet20")
    task: nn.Module = ObfuscationTask(
        Obfuscator(),
        Deobfuscator(),
        fold_norms(classifier) if folded else classifier,
        normalize(),
        privacy_weight=PRIVACY_WEIGHT,
        bfloat16=precision == "auto" and choose_precision("auto", CPU).dense_bfloat16,
    ).train()
    task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        task.compile()
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=1e-3, fused=True)
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = task(images, labels)["loss"]
        loss.backward()
        optimizer.step()

    return step


def compilation(step: Step) -> dict[str, Any]:
    """Time a step that has to compile first; return the reason if it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": empty}):
        try:
            step()
        except Exception as error:  # it calls the machine's C++ compiler, and raises what that makes of it
            return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return {"first_step_s": time.perf_counter() - start}


def parts(images: Tensor) -> dict[str, Step]:
    """Return the parts of the step, each with its forward and backward pass."""
    images = images.contiguous(memory_format=torch.channels_last)
    nets: dict[str, nn.Module] = {
        "obfuscator": Obfuscator().train(),
        "deobfuscator": Deobfuscator().train(),
        "classifier": fold_norms(build_classifier("resnet20")),
    }
    trained = [p for name in ("obfuscator", "deobfuscator") for p in nets[name].parameters()]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    made: dict[str, Step] = {"optimizer": torch.optim.Adam(trained, lr=1e-9, fused=True).step}
    for name, net in nets.items():
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        given = images.clone().requires_grad_(name != "obfuscator")

        def both(net: nn.Module = net, given: Tensor = given) -> None:
            net(given).square().mean().backward()

        made[name] = both
    return made


def operators(step: Step) -> dict[str, float]:
    """The share of each operator in a step's time, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    whole = sum(times.values())
    return {name: round(time / whole, 4) for name, time in sorted(times.items(), key=lambda x: -x[1])[:OPERATORS]}


def main(out: Path | None, *, batch: int = BATCH, rounds: int = ROUNDS) -> None:
    keep_freed_memory()
    torch.manual_seed(0)
    images, labels = torch.rand(batch, 3, 32, 32), torch.randint(10, (batch,))
    steps = {
        "plain_two_pass": plain_two_pass(images, labels),
        "ours": ours(images, labels),
        "ours_norms_apart": norms_apart(ours(images, labels, folded=False)),
    }
    steps["ours_float32"] = ours(images, labels, precision="float32")
    steps["ours_bfloat16"] = ours(images, labels, precision="bfloat16")
    compiled = ours(images, labels, precision="float32", compiled=True)
    compiling = compilation(compiled)
    if "failed" not in compiling:
        steps["ours_compiled"] = compiled
    pieces = parts(images)
    times = time_in_turn({**steps, **pieces}, warm_up=WARM_UP, rounds=rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    speedup = medians["plain_two_pass"] / medians["ours"]
    reached = limits()
    result: dict[str, Any] = {
        "what": f"one training step of obfuscator and deobfuscator, batch {batch}, 3x32x32, frozen ResNet20",
        "speedup": speedup,
        "speedup_of_others": {
            name: medians["plain_two_pass"] / medians[name] for name in steps if name not in ("plain_two_pass", "ours")
        },
        "compilation": compiling,
        "median_ms": {name: medians[name] for name in steps},
        "images_per_s": {name: 1000 * batch / medians[name] for name in steps},
        "parts_ms": {name: medians[name] for name in pieces},
        "operators": {name: operators(steps[name]) for name in ("ours", "plain_two_pass")},
        "machine": reached,
        "work": {
            "ours_float32": _compared(counted(steps["ours_float32"]), reached, medians["ours_float32"], "float32"),
            "ours_bfloat16": _compared(counted(steps["ours_bfloat16"]), reached, medians["ours_bfloat16"], "bfloat16"),
            "plain_two_pass": _compared(
                counted(steps["plain_two_pass"]), reached, medians["plain_two_pass"], "float32"
            ),
        },
        "full_size": full_size(reached, **({} if rounds == ROUNDS else {"batch": batch, "rounds": rounds})),
        "all_ms": times,
        "threads": torch.get_num_threads(),
        "bfloat16_in_the_processor": bool(cpu_features()),
        "measured": provenance().to_json(),
    }
    if out is not None:
        write_json(out, result)
    print(f"plain two-pass {medians['plain_two_pass']:.0f} ms, ours {medians['ours']:.0f} ms: {speedup:.2f}x -> {out}")
    if out is None:
        print({name: value for name, value in result.items() if name not in ("all_ms", "measured")})


def _compared(work: Counted, reached: dict[str, Any], time_ms: float, datatype: str) -> dict[str, float]:
    """Return the operations and bytes of a step, and its shortest possible time on this machine."""
    compute_ms = work.operations / reached["gflop_per_s"][datatype] / 1e6
    memory_ms = work.moved_bytes / reached["gb_per_s"] / 1e6
    return {
        "gflop": work.operations / 1e9,
        "moved_gb": work.moved_bytes / 1e9,
        "compute_ms_at_least": compute_ms,
        "memory_ms_at_least": memory_ms,
        "share_of_the_limit": max(compute_ms, memory_ms) / time_ms,
        "share_if_nothing_overlaps": (compute_ms + memory_ms) / time_ms,
    }


def command(out: Path = Path("results/training-step.json"), *, quick: bool = False) -> None:
    """Measure, and write the results file; with `--quick`, try it and write nothing."""
    if quick:
        main(None, batch=8, rounds=1)
    else:
        main(out)


if __name__ == "__main__":
    typer.run(command)
