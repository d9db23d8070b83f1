"""How figures and tables are written down. This module needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

NONE = "-"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    Args:
        headers: of the columns.
        rows: cells, as many as there are headers.
    """
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


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
    """What a row says that is not there: which command fills it."""
    return f"missing: `python -m reproduction {target} --size {size}`"


def leakage(audit: dict[str, Any] | None) -> str:
    """Excess leakage with who found it: "0.19 (residual decoder, cloud; budget quick, 10,000 images)"."""
    return "no attacker came to an end" if audit is None else f"{ratio(audit['excess_leakage'])} ({found_by(audit)})"


def found_by(audit: dict[str, Any]) -> str:
    """Who found it, and how hard the audit tried."""
    images = count(audit["test_images"])
    return f"{audit['attacker']}, {audit['threat']}; budget {audit['budget']}, {images} images"


def trained(facts: dict[str, Any]) -> str:
    """Epochs, batch, seed, precision, hours and machine: "9 epochs, batch 128, seed 0, 2.5 hours, AMD EPYC"."""
    images = facts["train_images"]
    some = "" if images is None else f" of {count(images)} images"
    parts = [f"{facts['epochs']} epochs{some}", f"batch {facts['batch_size']}", f"seed {facts['seed']}"]
    if facts.get("precision"):
        parts.append(facts["precision"])
    if facts.get("seconds"):
        hours = facts["seconds"] / 3600
        parts.append(f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(60 * hours))} minutes")
    return ", ".join([*parts, facts["device"] or "unknown machine"])


def measured(results: dict[str, Any]) -> str:
    """Where a table's figures come from."""
    facts = results["provenance"]
    device = facts.get("device") or facts["machine"]["cpu"]
    return f"Measured {facts['written'][:10]} at commit {facts['commit'] or 'unknown'} on {device}."
