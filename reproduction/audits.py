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
from sfumato.lab.audit.result_store import ResultStore, stored_tensors
from sfumato.lab.audit.run import Comparison
from sfumato.lab.audit.schema import AnyTrial, AuditResult, LostTrial, recorded
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.audit.targets import bundle_target
from sfumato.lab.audit.trials import Trials
from sfumato.lab.runs.audits import findings, finish_audit
from sfumato.lab.runs.folders import read_json


def audit_folder(lab: Lab, item: Item) -> Path:
    """Where an obfuscator's audit lies, or will."""
    return lab.folder / "audits" / item.name


def known_audit(lab: Lab, item: Item) -> AuditResult | None:
    """An obfuscator's audit if it was made: in the lab, or where the plan says.

    Raises:
        AuditError: it is damaged, or another obfuscator's.
    """
    folder = audit_folder(lab, item)
    places = [folder / "audit.json", *([Path(item.audit)] if item.audit else [])]
    for place in places:
        if not place.is_file():
            continue
        try:
            found = AuditResult.read(place)
            about = read_json(findings(folder)) if place.parent == folder else None
        except (AuditError, ResultsError) as error:
            raise AuditError(f"{error}; move it away, then the audit is made again") from error
        bundle = lab.bundle(item)
        stated = about["obfuscator"][1] if about is not None else found.target.fingerprint
        own = recorded(bundle)
        if stated != bundle.files[OBFUSCATOR_ONNX] if stated else found.best != (own.best if own else None):
            raise AuditError(f"{place} is the audit of another obfuscator; move it away, then it is made again")
        return found
    return None


def make_audit(lab: Lab, item: Item) -> AuditResult:
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
    comparison = Comparison(
        classifier=lab.bundle(lab.plan.item(item.classifier)),
        local=lab.bundle(local) if local is not None and lab.state(local).name == "done" else None,
    )
    budget = BUDGETS[lab.plan.budget]
    with lab.bars() as progress:
        return finish_audit(
            setting_of(lab, item), budget, folder, comparison=comparison, device=lab.device, progress=progress
        )


def setting_of(lab: Lab, item: Item) -> AttackSetting:
    """An obfuscator, the images and its classifier, as the audit takes them."""
    return AttackSetting(bundle_target(lab.bundle(item)), lab.images, lab.test, classifier=lab.frozen(item).net)


def summary(found: AuditResult) -> dict[str, Any] | None:
    """What the tables show of an audit; None if no attacker came to an end."""
    best = found.best
    if best is None:
        return None
    keys = {"attacker", "threat", "seed", "mse", "psnr_db", "ssim", "excess_leakage", "test_images", "images_seen"}
    return {
        **best.model_dump(mode="json", include=keys),
        "class_mean_mse": found.class_mean_mse,
        "reidentified": _reidentified(found),
        "budget": found.budget.name,
        "finding": found.verdict.finding,
        "commit": found.provenance.commit,
    }


def _reidentified(found: AuditResult) -> dict[str, Any] | None:
    """The best attacker's share of images picked among the most candidates; None if that was not tried."""
    rows = [row for row in found.identification if row.measure == "retrieval"]
    best = max(rows, key=lambda row: (row.candidates, row.top1), default=None)
    if best is None:
        return None
    return {key: getattr(best, key) for key in ("top1", "candidates", "chance", "queries", "attacker")}


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
    best = found.best
    if best is None:
        raise AuditError(f"{audit_folder(lab, item)}: no attacker came to an end, so there is nothing to show")
    work = audit_folder(lab, item) / "work"
    kept = _kept(work, best.key) if work.with_name("audit.json").is_file() else None
    return (_once_more(lab, item, found) if kept is None else kept)[:count]


def _kept(folder: Path, key: str) -> Tensor | None:
    return stored_tensors(folder, f"{key}-all").get("reconstructed")


def _once_more(lab: Lab, item: Item, found: AuditResult) -> Tensor:
    best, budget = found.best, BUDGETS[found.budget.name]
    assert best is not None
    trials = [replace(trial, seed=best.seed) for trial in budget.trials]
    trial = next((trial for trial in trials if trial.key == best.key), None)
    if trial is None:
        raise AuditError(f"the budget {budget.name!r} has no trial {best.key!r}; audit {item.name} again")
    folder = audit_folder(lab, item) / "again"
    identity = {"obfuscator": lab.bundle(item).files[OBFUSCATOR_ONNX], "trial": repr(trial), "test": lab.test.sha256}
    store = ResultStore(folder, identity, resume=(folder / "audit.json").is_file(), overwrite=False)
    with lab.bars() as progress:
        trials_of = Trials(setting_of(lab, item), budget, store, lab.device, progress)
        done = store.once(trial.key, AnyTrial, lambda: trials_of.run(trial))
    reconstructed = _kept(folder, trial.key)
    if reconstructed is None:
        why = done.reason if isinstance(done, LostTrial) else "nothing was kept"
        raise AuditError(f"the best attacker on {item.name} could not be trained again: {why}")
    return reconstructed
