"""The attackers who came afterwards: each obfuscator's audit, and the images that the best of them reconstructed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from reproduction.lab import Lab
from reproduction.plan import Item
from sfumato.artifacts.bundle import OBFUSCATOR_ONNX
from sfumato.errors import AuditError, ResultsError
from sfumato.lab.audit.budget import BUDGETS
from sfumato.lab.audit.result_store import Notebook
from sfumato.lab.audit.run import Beside
from sfumato.lab.audit.setting import Scene
from sfumato.lab.audit.targets import bundle_target
from sfumato.lab.audit.trials import Attempts
from sfumato.lab.runs.audits import check_complete, findings, finish_audit
from sfumato.lab.runs.folders import read_json


def audit_folder(lab: Lab, item: Item) -> Path:
    """Where an obfuscator's audit lies, or will."""
    return lab.folder / "audits" / item.name


def known_audit(lab: Lab, item: Item) -> dict[str, Any] | None:
    """An obfuscator's audit if it was made: in the lab, or where the plan says.

    Raises:
        AuditError: it is damaged, or another obfuscator's.
    """
    folder = audit_folder(lab, item)
    places = [folder / "audit.json", *([Path(item.audit)] if item.audit else [])]
    for place in places:
        try:
            found = read_json(place)
            about = read_json(findings(folder)) if place.parent == folder else None
        except ResultsError as error:
            raise AuditError(f"{error}; move it away, then the audit is made again") from error
        if found is None:
            continue
        check_complete(found, place)
        bundle = lab.bundle(item)
        stated = about["obfuscator"][1] if about is not None else found.get("target", {}).get("fingerprint")
        own = (bundle.figures.audit or {}).get("best")
        if stated != bundle.files[OBFUSCATOR_ONNX] if stated else found["best"] != own:
            raise AuditError(f"{place} is the audit of another obfuscator; move it away, then it is made again")
        return found
    return None


def make_audit(lab: Lab, item: Item) -> dict[str, Any]:
    """An obfuscator's audit, made or gone on with if it is not there.

    Raises:
        AuditError: see `sfumato.lab.audit.run.audit` and `known_audit`.
        Interrupted: Ctrl-C or SIGTERM; the findings so far are kept.
    """
    found = known_audit(lab, item)
    if found is not None:
        return found
    folder = audit_folder(lab, item)
    assert item.classifier is not None
    local = lab.plan.local
    beside = Beside(
        classifier=lab.bundle(lab.plan.item(item.classifier)),
        local=lab.bundle(local) if local is not None and lab.state(local).name == "done" else None,
    )
    budget = BUDGETS[lab.plan.budget]
    return finish_audit(scene_of(lab, item), budget, folder, beside=beside, device=lab.device, bars=lab.bars)


def scene_of(lab: Lab, item: Item) -> Scene:
    """An obfuscator, the images and its classifier, as the audit takes them."""
    return Scene(bundle_target(lab.bundle(item)), lab.images, lab.test, classifier=lab.frozen(item).net)


def summary(found: dict[str, Any]) -> dict[str, Any] | None:
    """What the tables show of an audit; None if no attacker came to an end."""
    best = found["best"]
    if best is None:
        return None
    keys = ("attacker", "threat", "seed", "mse", "psnr_db", "ssim", "excess_leakage", "test_images", "images_seen")
    return {
        **{key: best[key] for key in keys},
        "class_mean_mse": found["class_mean_mse"],
        "reidentified": _reidentified(found),
        "budget": found["budget"]["name"],
        "finding": found["verdict"]["finding"],
        "commit": found["provenance"].get("commit"),
    }


def _reidentified(found: dict[str, Any]) -> dict[str, Any] | None:
    """The best attacker's share of images picked among the most candidates; None if that was not tried."""
    rows = [row for row in found["identification"] if row["measure"] == "retrieval" and row.get("top1") is not None]
    best = max(rows, key=lambda row: (row["candidates"], row["top1"]), default=None)
    return None if best is None else {key: best[key] for key in ("top1", "candidates", "chance", "queries", "attacker")}


def reconstructed_by_best(lab: Lab, item: Item, count: int) -> Tensor:
    """The first test images as the audit's best attacker reconstructed them.

    The audit keeps them; where only its figures are at hand, its best attacker is trained once more, in the same way.

    Args:
        lab: the lab.
        item: the obfuscator.
        count: how many images.

    Returns:
        (at most count, 3, H, W) uint8.

    Raises:
        AuditError: no attacker came to an end.
    """
    found = make_audit(lab, item)
    best = found["best"]
    if best is None:
        raise AuditError(f"{audit_folder(lab, item)}: no attacker came to an end, so there is nothing to show")
    kept = (
        _kept(audit_folder(lab, item) / "work", best["key"])
        if (audit_folder(lab, item) / "audit.json").is_file()
        else None
    )
    return (_once_more(lab, item, found) if kept is None else kept)[:count]


def _kept(folder: Path, key: str) -> Tensor | None:
    from safetensors.torch import load_file

    path = folder / f"{key}-all.safetensors"
    return load_file(path)["reconstructed"] if path.is_file() else None


def _once_more(lab: Lab, item: Item, found: dict[str, Any]) -> Tensor:
    best, budget = found["best"], BUDGETS[found["budget"]["name"]]
    trials = [replace(trial, seed=best["seed"]) for trial in budget.trials]
    trial = next((trial for trial in trials if trial.key == best["key"]), None)
    if trial is None:
        raise AuditError(f"the budget {budget.name!r} has no trial {best['key']!r}; audit {item.name} again")
    folder = audit_folder(lab, item) / "again"
    identity = {"obfuscator": lab.bundle(item).files[OBFUSCATOR_ONNX], "trial": repr(trial), "test": lab.test.sha256}
    notebook = Notebook(folder, identity, resume=(folder / "audit.json").is_file(), overwrite=False)
    with lab.bars() as progress:
        attempts = Attempts(
            scene_of(lab, item), budget, notebook, lab.device, lambda *now: progress(0, 1, now[0], now[1], now[2])
        )
        done = notebook.once(trial.key, lambda: attempts.attempt(trial))
    reconstructed = _kept(folder, trial.key)
    if reconstructed is None:
        raise AuditError(f"the best attacker on {item.name} could not be trained again: {done['reason']}")
    return reconstructed
