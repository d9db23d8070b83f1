"""Figures and tables in Markdown. This module needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reproduction.schema import AuditSummary, Origin, Results

NONE = "-"
_OPTIMIZERS = {"adam": "Adam", "sgd": "SGD", "muon": "Muon"}


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; each row has as many cells as there are headers."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def paragraphs(*parts: str | None) -> str:
    """Join what there is with empty lines."""
    return "\n\n".join(part for part in parts if part)


def percent(share: float | None) -> str:
    """0.934 -> "93.4 %"."""
    return NONE if share is None else f"{100 * share:.1f} %"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points: -0.012 -> "-1.2"."""
    return NONE if difference is None else f"{100 * difference:+.1f}"


def compared(theirs: float | None, ours: float | None) -> str:
    """The paper's share, ours, and the difference in points: "93.4 % / 93.0 % / -0.4"."""
    difference = None if theirs is None or ours is None else ours - theirs
    return f"{percent(theirs)} / {percent(ours)} / {points(difference)}"


def error(mse: float | None) -> str:
    """A mean squared error: 0.04638 -> "0.0464"."""
    return NONE if mse is None else f"{mse:.4f}"


def ratio(value: float | None) -> str:
    """0.186 -> "0.19"."""
    return NONE if value is None else f"{value:.2f}"


def count(value: int | None) -> str:
    """10000 -> "10,000"."""
    return NONE if value is None else f"{value:,}"


def command(target: str, size: str) -> str:
    """The command that makes a target."""
    return f"`python -m reproduction {target} --size {size}`"


def missing(target: str, size: str) -> str:
    """In place of results that are missing: the command that makes them."""
    return f"missing: {command(target, size)}"


def leakage(audit: AuditSummary | None) -> str:
    """Excess leakage and its conditions: "0.19 (residual decoder, cloud; budget quick, 10,000 images)"."""
    return "no attacker finished" if audit is None else f"{ratio(audit.excess_leakage)} ({found_by(audit)})"


def found_by(audit: AuditSummary) -> str:
    """The attacker, its threat model, the attack budget and the number of test images."""
    return f"{audit.attacker}, {audit.threat}; budget {audit.budget}, {count(audit.test_images)} images"


def trained(origin: Origin) -> str:
    """How a network was trained: "9 epochs of 50,000 images, batch 128, seed 0, 2.5 hours, AMD EPYC"."""
    images = "" if origin.train_images is None else f" of {count(origin.train_images)} images"
    parts = [f"{origin.epochs} epochs{images}"]
    if origin.begun:
        took = "" if origin.begun.seconds is None else f" ({_duration(origin.begun.seconds)})"
        parts[0] += f" after {origin.begun.epochs} of its trunk as a classifier{took}"
    if origin.small_epochs:
        parts.append(f"the first {origin.small_epochs} on images of three quarters of their sides")
    parts += [_OPTIMIZERS[origin.optimizer]] if origin.optimizer else []
    parts += [f"batch {origin.batch_size}", f"seed {origin.seed}"]
    if origin.precision:
        parts.append(origin.precision)
    if origin.seconds:
        parts.append(_duration(origin.seconds))
    return ", ".join([*parts, origin.device or "unknown machine"])


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(60 * hours))} minutes"


def measured(results: Results) -> str:
    """When, at which commit and on what a table was measured."""
    facts = results.provenance
    if facts is None:
        return ""
    return (
        f"Measured {facts.written[:10]} at commit {facts.commit or 'unknown'} on {facts.device or facts.machine.cpu}."
    )
