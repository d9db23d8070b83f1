"""Audits as points of the plot: accuracy, excess leakage, and what that leakage gives without an obfuscator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.artifacts.versions import upgraded
from sfumato.errors import AuditError
from sfumato.lab.audit.verdict import SCHEMA, best_mixture

Point = dict[str, Any]
"""name, accuracy, excess_leakage (None for the paper), role, budget, source, best_attacker.

Of an obfuscator also: local, the accuracy of the classifier on the device; mixture, what anybody gets at that leakage
without an obfuscator; mixing, how. None where no classifier on the device was measured.
"""

ROLES = ("this", "swept", "baseline", "local", "identity", "gated", "paper", "other")
ENDS = ("local", "identity", "gated", "paper")
"""The roles of what is no obfuscator that was audited."""

PAPER_DATA = "cifar10"
PAPER: tuple[Point, ...] = tuple(
    {
        "name": f"paper, {net}", "accuracy": accuracy, "excess_leakage": None, "role": "paper", "budget": None,
        "source": "Leroux et al. 2018, table 2", "best_attacker": None,
    }
    for net, accuracy in (("VGG19", 0.893), ("ResNet18", 0.898), ("ResNet50", 0.902), ("GoogLeNet", 0.905))
)  # fmt: skip
"""The paper's accuracies on CIFAR-10. It measures no leakage that can be compared."""


def collect(folder: Path) -> list[Point]:
    """Reads a folder of audits into points.

    Args:
        folder: see `read_audits`.

    Returns:
        See `points_of`.

    Raises:
        AuditError: see `read_audits` and `points_of`.
    """
    return points_of(read_audits(folder))


def read_audits(folder: Path) -> dict[Path, dict[str, Any]]:
    """Reads a folder of audits.

    Args:
        folder: every `*.json` of schema `sfumato.audit/1` in it counts; other JSON files are passed over.

    Returns:
        Their contents, in the order of the file names.

    Raises:
        AuditError: no such folder, or a file that cannot be read as JSON.
    """
    if not folder.is_dir():
        raise AuditError(f"{folder} is not a folder; give the one that holds the audits' JSON files")
    contents = {file: _read(file) for file in sorted(folder.glob("*.json"))}
    return {file: audit for file, audit in contents.items() if audit is not None}


def points_of(audits: Mapping[Path, dict[str, Any]]) -> list[Point]:
    """Turns audits into points.

    Each audit with a classifier and a best attacker gives one point, with a gate two. The ends of the line, the
    classifier on the device and the plain image in the cloud, are the best that any of the audits knows, as is the
    curve of a gate before the plain image. The paper's accuracies are added where the data are `PAPER_DATA`.

    Args:
        audits: contents of `audit.json` files.

    Returns:
        Points, in the order of the audits, then the ends and the paper.

    Raises:
        AuditError: a broken audit, or audits of several data sets, which cannot be compared.
    """
    points: list[Point] = []
    curves: list[list[Point]] = []
    ends: dict[str, list[float]] = {"local": [], "identity": []}
    sources: dict[str, Path] = {}
    for file, audit in audits.items():
        try:
            sources.setdefault(str(audit["data"]["source"]), file)
            found = _points(audit, file)
            utility = audit.get("utility") or {}
            for role, figure in (("local", "accuracy_local"), ("identity", "accuracy_plain")):
                if utility.get(figure) is not None:
                    ends[role].append(float(utility[figure]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AuditError(
                f"{file} is a broken audit ({type(error).__name__}: {error}); run the audit again or remove the file"
            ) from error
        points += found
        curves.append(gated_plain_points(audit.get("utility") or {}))
    if len(sources) > 1:
        places = ", ".join(f"{source} ({file.name})" for source, file in sources.items())
        raise AuditError(f"audits of several data sets cannot share one plot: {places}; keep them in separate folders")
    curve = max(curves, key=lambda curve: sum(p["accuracy"] for p in curve), default=[])
    alternatives = {
        "accuracy_local": max(ends["local"], default=None),
        "accuracy_plain": max(ends["identity"], default=None),
        "gated_plain": curve,
    }
    points = [{**point, **_without_it(point, alternatives)} for point in points] + curve
    roles = {point["role"] for point in points}
    for role, name, leakage in (("local", "classifier on the device", 0.0), ("identity", "plain image", 1.0)):
        if ends[role] and role not in roles:
            points.append(
                {
                    "name": name, "accuracy": max(ends[role]), "excess_leakage": leakage, "role": role,
                    "budget": None, "source": "the audits' utility", "best_attacker": None,
                }
            )  # fmt: skip
    return points + [dict(point) for point in PAPER if PAPER_DATA in sources]


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = upgraded(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise AuditError(f"{file} cannot be read as JSON ({error}); remove it or write it again") from error
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA else None


def _points(audit: dict[str, Any], file: Path) -> list[Point]:
    """Where the obfuscator stands if it sends everything, and, if it has a gate, with that."""
    utility, best, target = audit.get("utility"), audit.get("best"), audit["target"]
    if not utility or not best or best.get("excess_leakage") is None:
        return []
    role = next((word for word in (target["kind"], target["name"]) if word in ROLES), "other")
    own = {
        "name": str(target["name"]),
        "accuracy": float(utility["accuracy_obfuscated"]),
        "excess_leakage": float(best["excess_leakage"]),
        "role": role,
        "budget": str(audit["budget"]["name"]),
        "source": file.name,
        "best_attacker": str(best["attacker"]),
    }
    return [own, *gated_point(own, audit.get("gate"))]


def _without_it(point: Point, utility: dict[str, Any]) -> Point:
    """What anybody gets at a point's leakage without the obfuscator, from the best that any of the audits knows."""
    if utility.get("accuracy_local") is None:
        return {"local": None, "mixture": None, "mixing": None}
    mixture, mixing = best_mixture(point["excess_leakage"], utility)
    return {"local": float(utility["accuracy_local"]), "mixture": mixture, "mixing": mixing}


def gated_point(own: Point, gate: dict[str, Any] | None) -> list[Point]:
    """Where an obfuscator stands if its device answers what it is sure of; empty without a gate that was measured.

    Args:
        own: the same obfuscator, sending everything.
        gate: `gate` of its `audit.json`.
    """
    if not gate or gate["accuracy_gated"] is None or gate["excess_leakage_mean"] is None:
        return []
    place = {"accuracy": float(gate["accuracy_gated"]), "excess_leakage": float(gate["excess_leakage_mean"])}
    return [{**own, **place, "name": f"{own['name']}, gated", "best_attacker": str(gate["attacker"])}]


def gated_plain_points(utility: dict[str, Any]) -> list[Point]:
    """Where anybody stands who answers on the device what it is sure of and sends the other images as they are.

    Args:
        utility: of an `audit.json`.
    """
    return [
        {
            "name": f"plain image, {100 * row['offload_rate']:.0f} % sent", "accuracy": float(row["accuracy"]),
            "excess_leakage": float(row["excess_leakage"]), "role": "gated", "budget": None,
            "source": "the audits' utility", "best_attacker": None,
        }
        for row in utility.get("gated_plain") or []
    ]  # fmt: skip
