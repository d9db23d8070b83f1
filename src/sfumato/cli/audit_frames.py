"""`sfumato audit --frames`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sfumato.cli import options
from sfumato.cli.output import conclude, prepare, print_checks, print_table, write_result
from sfumato.cli.progress import bars
from sfumato.errors import AuditError

if TYPE_CHECKING:
    import torch

    from sfumato.lab.attacks.target import Target
    from sfumato.lab.audit.frames import FramesResult
    from sfumato.lab.audit.frames_run import Recognised
    from sfumato.lab.data import ImageSet

_HEADERS = ("frames", "sent", "MSE", "excess leakage", "linkage", "re-identification")
_TIMED_IMAGES = 100


def leak_over_time(
    *,
    obfuscator: str | None,
    data: str,
    size: str | None,
    allow_outside: bool,
    label_column: str | None,
    images: int | None,
    seed: int,
    budget: str,
    out: Path | None,
    compare: Path | None,
    as_json: bool,
) -> None:
    """Print what leaks of a scene of which many frames are taken, and plot it beside the results file.

    Raises:
        typer.Exit: a check of the averaging fails.
    """
    from sfumato.lab.audit.frames import leakage_over_time, read_frames
    from sfumato.lab.audit.targets import load_target, native_size
    from sfumato.lab.data import load_train_test
    from sfumato.lab.models.precision import fastest_device
    from sfumato.lab.report.frames import save_frames_png

    if out is not None and out.suffix != ".json":
        raise AuditError(f"--out with --frames names a .json file, beside which the plot is written; got {out}")
    prepare(out)
    path = Path(obfuscator) if obfuscator else None
    source = obfuscator if obfuscator and not Path(obfuscator).is_dir() else options.open_obfuscator(path)
    others = read_frames(compare) if compare else []
    device = fastest_device()
    with bars(quiet=as_json) as shown:
        sides = options.image_size(size) or native_size(source)
        train, test, _ = load_train_test(
            data, size=sides, label_column=label_column, allow_outside=allow_outside, progress=shown.progress
        )
        train, test = train.subset(images), test.subset(images)
        height, width = train.images.shape[2:]
        target, seen = load_target(source, size=(height, width)), _decoder_images(budget)
        if not as_json:
            shown.say(_announced(target, train, test, seen, device))
        found = leakage_over_time(target, train, test, images=seen, seed=seed, device=device, progress=shown.progress)
    write_result(out, found.as_json)
    if out is not None:
        save_frames_png([found, *others], out.with_suffix(".png"))
    conclude(found.as_json, found.sanity_checks, partial(_print, found), as_json=as_json)


def _decoder_images(budget: str) -> int:
    """Return the training images of the budget's strongest decoder of single frames."""
    from sfumato.lab.audit.budget import BUDGETS
    from sfumato.lab.audit.frames import DECODERS

    return max(trial.images for trial in BUDGETS[budget].trials if trial.attacker in DECODERS)


def _announced(target: Target, train: ImageSet, test: ImageSet, seen: int, device: torch.device) -> str:
    """Return what will run, and roughly how long, measured on a few images."""
    from sfumato.lab.audit.frames import SCENES
    from sfumato.lab.audit.frames_run import COUNTS
    from sfumato.lab.runs.speed import Speed, spoken

    some, scenes = train.images[:_TIMED_IMAGES], min(SCENES, len(test))
    target.observe(some)  # the first one is slower
    started = time.monotonic()
    target.observe(some)
    each, payloads = (time.monotonic() - started) / len(some), 2 * scenes * max(COUNTS)
    speed = Speed(device)
    seconds = speed.frames_s(seen, payloads, target.height, target.width) + each * payloads
    return (
        f"{target.name}: {max(COUNTS)} frames of {scenes} scenes, twice, after training a decoder on {seen:,} images, "
        f"on {device.type}; about {spoken(seconds)} on this machine"
    )


def _print(found: FramesResult) -> None:
    for policy in dict.fromkeys(row.policy for row in found.leakages):
        rows = [
            (
                str(row.frames),
                f"{row.sent:.1f}",
                f"{row.mse:.4f}",
                f"{row.excess_leakage:.3f}",
                _best(row.linkage),
                _best(row.identification),
            )
            for row in found.leakages
            if row.policy == policy
        ]
        print_table(_HEADERS, rows, numbers=range(6), title=f"{found.obfuscator}, sent: {policy}")
    typer.echo(
        f"{found.scenes} scenes; reconstructions by {found.decoder}; linkage and re-identification among "
        f"{found.candidates} of the same class, chance {100 / found.candidates:.1f} %; lower bounds"
    )
    print_checks(found.sanity_checks)


def _best(told: tuple[Recognised, ...]) -> str:
    best = max(told, key=lambda one: one.top1)
    return f"{100 * best.top1:.1f} % ({100 * best.low:.1f} to {100 * best.high:.1f})"
