"""Audits that nobody ran, for what people read of them."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from sfumato.lab.audit.schema import AuditResult, GateFigures, Point, Utility
from sfumato.lab.report.panels import Case, Images

_REFERENCES = [
    ("a random training image of the same class", None, 0.1153, 9.38, 0.054),
    ("the mean training image", None, 0.0618, 12.09, 0.132),
    ("the mean image of the same class", 0, 0.0574, 12.41, 0.143),
    ("label and 4 more bits", 4, 0.0357, 14.47, 0.195),
    ("8x8 block means", None, 0.0114, 19.44, 0.529),
]
_KEYS = itertools.count()


def trial(attacker: str, threat: str, mse: float | None, **changes: Any) -> dict[str, Any]:
    """One trial as plain JSON; without an MSE it failed."""
    made: dict[str, Any] = {"key": f"trial-{next(_KEYS)}", "attacker": attacker, "threat": threat, "pairs": 10_000}
    if mse is None:
        return made | {"status": "failed", "reason": "the loss is not finite"} | changes
    curve = [[seen, mse + 0.02 / (1 + seen / 8000)] for seen in range(0, 60_001, 5000)]
    made |= {
        "status": "done", "mse": mse, "psnr_db": 15.0, "ssim": round(0.9 - 12 * mse, 3), "mse_compared": mse,
        "excess_leakage": max(0.0, 1 - mse / 0.0574), "test_images": 2000, "params": 1_234_567, "images_seen": 60_000,
        "seconds": 75.0, "curve": curve, "flattened": True,
    }  # fmt: skip
    return made | changes


def gate(**changes: Any) -> dict[str, Any]:
    """What a gate changes, as plain JSON."""
    figures = GateFigures(
        threshold=0.8, offload_rate=0.152, sent_images=1520, accuracy_device=0.905, accuracy_gated=0.913,
        attacker="least squares", excess_leakage_sent=0.123, excess_leakage_mean=0.021,
    )  # fmt: skip
    return figures.as_json | changes


UTILITY = Utility(accuracy_plain=0.9138, accuracy_obfuscated=0.9, accuracy_local=0.89, test_images=10_000)
CHECK = {
    "name": "blur is undone", "passed": True, "measured": "MSE 0.0012", "needed": "MSE below 0.0050",
    "detail": "Gaussian blur, sigma 1",
}  # fmt: skip


def fake_audit(*, mse: float = 0.0565, **changes: Any) -> AuditResult:
    """An audit in which everything went well and the best attacker reached `mse`.

    Args:
        mse: of the best attacker.
        **changes: plain JSON: keys of objects are changed one by one, anything else takes the place of what was there.
    """
    best = trial("U-Net", "white-box", mse)
    audit: dict[str, Any] = {
        "schema": "sfumato.audit/2",
        "target": {"name": "cifar10-fake", "kind": "bundle", "height": 32, "width": 32, "stochastic": True},
        "budget": {"name": "standard", "description": "60,000 images an attacker, one seed."},
        "data": {
            "source": "cifar10", "train_images": 50_000, "test_images": 2000,
            "sha256": {"train": "a" * 64, "test": "b" * 64},
        },
        "utility": UTILITY.as_json,
        "class_mean_mse": 0.0574,
        "references": [
            {"name": name, "bits": bits, "mse": m, "psnr_db": psnr, "ssim": ssim, "images": 10_000}
            for name, bits, m, psnr, ssim in _REFERENCES
        ],
        "trials": [
            best,
            trial("least squares", "white-box", mse + 0.0005, curve=[], flattened=None),
            trial("least squares", "pairs", mse + 0.0007, curve=[], flattened=None),
            trial("U-Net", "pairs", mse + 0.0004, views=16),
        ],
        "identification": [
            {
                "measure": "retrieval", "attacker": "U-Net", "threat": "white-box", "candidates": 100, "top1": 0.011,
                "chance": 0.01, "queries": 2000, "low": 0.007, "high": 0.016,
            }
        ],
        "attributes": [
            {
                "attribute": "bright background", "accuracy": 0.51, "chance": 0.5, "test_images": 2000, "low": 0.49,
                "high": 0.53,
            }
        ],
        "sanity_checks": [CHECK],
        "certificate": None,
        "certificate_note": "the obfuscator is deterministic",
        "frontier": [
            point("cifar10-fake", 0.9, 0.02, "this").as_json,
            point("on-device baseline", 0.89, 0.0, "local").as_json,
            point("plain image", 0.9138, 1.0, "identity").as_json,
        ],
        "best": best | {"curve": []},
        "verdict": {"finding": "withstood", "sentences": ["One.", "Two.", "Three."]},
        "provenance": {
            "sfumato": "0.1.0", "commit": "0123456789ab", "written": "2026-11-23T19:18:23+00:00", "python": "3.11.7",
            "libraries": {"torch": "2.13.0", "numpy": "2.4.6"}, "machine": {"cpu": "A CPU", "cores": 2}, "seed": 0,
        },
    }  # fmt: skip
    return AuditResult.of(_merged(audit, changes), "a fake")


def changed(audit: AuditResult, **changes: Any) -> AuditResult:
    """An audit with changes, see `fake_audit`; `more_trials` are added to its trials."""
    more = changes.pop("more_trials", [])
    plain = _merged(audit.as_json, changes)
    return AuditResult.of(plain | {"trials": [*plain["trials"], *more]}, "a fake")


def _merged(value: Any, changes: Any) -> Any:
    if not (isinstance(value, dict) and isinstance(changes, dict)):
        return changes
    return value | {key: _merged(value.get(key), change) for key, change in changes.items()}


def point(name: str, accuracy: float, excess_leakage: float | None, role: str, budget: str | None = "full") -> Point:
    """A point of the frontier."""
    facts = {"budget": budget, "source": f"{name}.json", "best_attacker": "U-Net"}
    return Point(name=name, accuracy=accuracy, excess_leakage=excess_leakage, role=role, **facts)


def fake_images(attackers: tuple[str, ...] = ("U-Net", "least squares"), count: int = 3) -> Images:
    """Random images of fitting shapes."""
    source = torch.Generator().manual_seed(0)

    def some() -> torch.Tensor:
        return torch.randint(256, (count, 3, 32, 32), generator=source, dtype=torch.uint8)

    ends = [f"Reconstructed {end}, by {measure}" for end in ("best", "worst") for measure in ("MSE", "SSIM")]
    cases = {title: [Case(some()[:2], f"{0.01 * (n + 1)}") for n in range(2)] for title in ends}
    return Images(some(), some(), {name: some() for name in attackers}, cases)
