"""An audit's figures in the bundle of what was audited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sfumato.artifacts.bundle import Bundle
from sfumato.lab.audit.budget import BUDGETS

_KEPT = (
    "verdict", "budget", "best", "utility", "gate", "class_mean_mse", "identification", "attributes", "certificate",
    "provenance",
)  # fmt: skip


def record(bundle: Bundle, found: dict[str, Any]) -> bool:
    """Puts an audit's figures into the obfuscator's bundle, unless one that tried harder has found as much.

    Args:
        bundle: of the obfuscator.
        found: the content of `audit.json`.

    Returns:
        Whether they were put there.

    Raises:
        BundleError: the disk refuses.
    """
    kept = bundle.figures.audit
    if kept is not None and _effort(kept) > _effort(found) and _leakage(kept) >= _leakage(found):
        return False
    replace(bundle, figures=bundle.figures.updated(audit={key: found[key] for key in _KEPT})).save()
    return True


def _effort(found: Mapping[str, Any]) -> int:
    """Training images over all decoders that an audit's budget allowed."""
    budget = found["budget"]
    named = BUDGETS.get(budget["name"])
    return int(budget.get("images", named.images if named else 0))


def _leakage(found: Mapping[str, Any]) -> float:
    return float((found["best"] or {}).get("excess_leakage") or 0)
