"""The last lines of `evaluate` and `train`: what the figures mean, in one sentence, and the command to type next."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import typer

from sfumato.artifacts.records import Figures
from sfumato.cli.output import percent

_SMALL_LOSS = 0.02
_LARGE_LOSS = 0.1
_LITTLE_LEFT = 0.25
"""An obfuscator that leaves less than this share of what the classifier knows beyond guessing is of no use."""
_BETTER_THAN_GUESSING = 1.5


def print_conclusion(figures: Figures, classes: int, following: str) -> None:
    """Print a verdict on the figures, if they have an accuracy, and the next command."""
    found = verdict(figures, classes)
    if found is not None:
        typer.echo(f"verdict: {found}")
    typer.echo(f"next: {following}")


def verdict(figures: Figures, classes: int) -> str | None:
    """Say in one sentence whether a classifier, or an obfuscator before it, is of use; None without an accuracy.

    Args:
        figures: of a bundle, or of an evaluation.
        classes: how many there are; guessing is correct for one in so many images.
    """
    if figures.mean_average_precision_plain is not None:
        return _of_multi_label(figures.mean_average_precision_plain, figures)
    plain, images, guessing = figures.accuracy_plain, figures.test_images or 0, 1 / classes
    if plain is None:  # of a classifier that only an endpoint has
        payloads = figures.accuracy_obfuscated
        if payloads is None:
            return None
        return f"it predicts {percent(payloads)} of the payloads correctly; guessing gives {percent(guessing)}"
    on = f"{percent(plain)} of {images:,} plain test images"
    if plain <= min(_BETTER_THAN_GUESSING * guessing, (1 + guessing) / 2):
        return (
            f"the classifier itself is of no use here: it predicts {on} correctly, and guessing {percent(guessing)}; "
            "check its mean and std, and the order of its labels"
        )
    if figures.accuracy_obfuscated is None:
        return f"the classifier predicts {on} correctly; guessing gives {percent(guessing)}"
    gated = figures.accuracy_gated
    kept = figures.accuracy_obfuscated if gated is None else gated
    how, lost = "on payloads" if gated is None else "with the gate", plain - kept
    chance = 2 * math.sqrt(plain * (1 - plain) / max(1, images))  # what differs by less may be the same
    points = f"{abs(100 * lost):.1f} points {'below' if lost >= 0 else 'above'} that on plain images"
    said = f"accuracy {how} is {percent(kept)}, {points}"
    if kept - guessing < _LITTLE_LEFT * (plain - guessing):
        return f"of no use as it is: {said}; train for more epochs, on more images, or with more bits"
    if lost <= max(_SMALL_LOSS, chance):
        return f"good: {said}{'' if lost <= _SMALL_LOSS else f', which {images:,} images cannot tell from chance'}"
    if lost <= _LARGE_LOSS:
        return f"usable, at a cost: {said}"
    return f"weak: {said}; train for more epochs, on more images, or with more bits"


def _of_multi_label(plain: float, figures: Figures) -> str:
    payloads = figures.mean_average_precision_obfuscated
    if payloads is None:
        on = f"{figures.test_images or 0:,} plain test images"
        return f"the classifier's mean average precision is {percent(plain)} on {on}"
    points = f"{abs(100 * (plain - payloads)):.1f} points {'below' if plain >= payloads else 'above'}"
    return f"mean average precision on payloads is {percent(payloads)}, {points} that on plain images"


def command_line(*words: str | Path) -> str:
    """Return a command as it is typed, with quotes where the shell needs them."""
    return shlex.join(["sfumato", *map(str, words)])


def audit_command(bundle: Path, classifier: Path | None, data: str, *, allow_outside: bool) -> str:
    """Return the command that audits an obfuscator; `classifier` is None for the shipped one."""
    of: list[str | Path] = [] if classifier is None else ["--classifier", classifier]
    return command_line("audit", bundle, *of, "--data", data, *_outside(allow_outside))


def init_command(classifier: Path, data: str, *, multi_label: bool = False, allow_outside: bool = False) -> str:
    """Return the command that writes a recipe of an obfuscator for a classifier."""
    kind = ["--kind", "obfuscator"] if multi_label else []
    more = [*kind, *_outside(allow_outside), "-o", "protected"]
    return command_line("init", "--classifier", classifier, "--data", data, *more)


def _outside(allowed: bool) -> list[str]:
    return ["--allow-outside"] if allowed else []
