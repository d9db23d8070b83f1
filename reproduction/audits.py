"""Adaptive attackers: each obfuscator's audit, and the images that the best attacker reconstructed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from reproduction.lab import Lab
from reproduction.plan import Item
from reproduction.schema import AuditSummary, Reidentification
from sfumato.artifacts.bundle import OBFUSCATOR_ONNX
from sfumato.errors import AuditError
from sfumato.lab.attacks.joint import JointDeobfuscator
from sfumato.lab.audit.budget import BUDGETS
from sfumato.lab.audit.result_store import ResultStore, stored_images
from sfumato.lab.audit.run import Comparison
from sfumato.lab.audit.schema import AnyTrial, AuditResult, LostTrial, best_of, recorded
from sfumato.lab.audit.setting import HELD_OUT_SHARE, AttackSetting
from sfumato.lab.audit.targets import bundle_target
from sfumato.lab.audit.trials import Trials
from sfumato.lab.runs.audits import finish_audit, read_audit, read_begun


@dataclass(frozen=True)
class KnownAudit:
    """What the tables need of an audit.

    Attributes:
        budget: name of its attack budget.
        best_key: of the best adaptive attacker's trial; None if none finished.
        summary: of the best attacker, likewise.
        fingerprint: of the obfuscator's ONNX file; None if the audit does not say.
    """

    budget: str
    best_key: str | None
    summary: AuditSummary | None
    fingerprint: str | None

    @classmethod
    def of(cls, found: AuditResult) -> KnownAudit:
        """Take what the tables need from an audit; they have the joint deobfuscator beside its attackers."""
        adaptive = [trial for trial in found.trials if trial.attacker != JointDeobfuscator.name]
        best, budget = best_of(adaptive), found.budget.name
        summary = None
        if best is not None:
            summary = AuditSummary.model_validate(
                {
                    **best.as_json,
                    "budget": budget,
                    "finding": found.verdict.finding,
                    "reidentified": _reidentified(found),
                    "class_mean_mse": found.class_mean_mse,
                    "commit": found.provenance.commit,
                }
            )
        return cls(budget, None if best is None else best.key, summary, found.target.fingerprint)


def _reidentified(found: AuditResult) -> Reidentification | None:
    """The best attacker's re-identification among the most candidates; None if it was not tried."""
    rows = [row for row in found.identification if row.measure == "retrieval" and row.classes == "one"]
    best = max(rows, key=lambda row: (row.candidates, row.top1), default=None)
    if best is None:
        return None
    return Reidentification(
        top1=best.top1, candidates=best.candidates, chance=best.chance, queries=best.queries, attacker=best.attacker
    )


def audit_folder(lab: Lab, item: Item) -> Path:
    """Return the folder of an obfuscator's audit, which may not exist yet."""
    return lab.folder / "audits" / item.name


def known_audit(lab: Lab, item: Item) -> KnownAudit | None:
    """Read an obfuscator's audit if there is one: in the lab, or where the plan says.

    Raises:
        AuditError: it is damaged, or another obfuscator's.
    """
    folder = audit_folder(lab, item)
    for place in (folder / "audit.json", *([Path(item.audit)] if item.audit else [])):
        content = read_audit(place)
        if content is None:
            continue
        found, bundle = KnownAudit.of(content), lab.bundle(item)
        about = read_begun(folder) if place.parent == folder else None
        fingerprint = about.obfuscator[1] if about and about.obfuscator else found.fingerprint
        if fingerprint:
            same = fingerprint == bundle.files[OBFUSCATOR_ONNX]
        else:  # older audits say it by the figures that they left in the bundle
            kept = recorded(bundle)
            same = kept is not None and content.best == kept.best
        if not same:
            raise AuditError(f"{place} is the audit of another obfuscator; move it away to make it again")
        return found
    return None


def make_audit(lab: Lab, item: Item) -> KnownAudit:
    """Return an obfuscator's audit; make it, or resume it, if it is missing.

    Raises:
        AuditError: see `sfumato.lab.audit.run.audit` and `known_audit`.
        Interrupted: Ctrl-C or SIGTERM; the findings so far are kept.
    """
    found = known_audit(lab, item)
    if found is not None:
        return found
    assert item.classifier is not None
    local = lab.plan.local
    comparison = Comparison(
        classifier=lab.bundle(lab.plan.item(item.classifier)),
        local=lab.bundle(local) if local is not None and lab.state(local).name == "done" else None,
    )
    budget, folder = BUDGETS[lab.plan.budget], audit_folder(lab, item)
    setting = setting_of(lab, item)
    made = finish_audit(setting, budget, folder, comparison=comparison, device=lab.device, progress=lab.progress)
    return KnownAudit.of(made)


def setting_of(lab: Lab, item: Item) -> AttackSetting:
    """Return the attack setting of an obfuscator: the images and its classifier."""
    return AttackSetting(
        bundle_target(lab.bundle(item)),
        lab.images,
        lab.test,
        classifier=lab.frozen(item).net,
        held_out_share=HELD_OUT_SHARE,
    )


def reconstructed_by_best(lab: Lab, item: Item, count: int) -> Tensor:
    """Return the first test images as the audit's best attacker reconstructed them.

    Audits keep these images; if only the figures are there, the best attacker is trained once more, in the same way.

    Args:
        lab: the lab.
        item: the obfuscator.
        count: number of images.

    Returns:
        (at most count, 3, H, W) uint8.

    Raises:
        AuditError: no attacker finished.
    """
    found, folder = make_audit(lab, item), audit_folder(lab, item)
    if found.best_key is None or found.summary is None:
        raise AuditError(f"{folder}: no attacker finished, so there is nothing to show")
    kept = stored_images(folder / "work", f"{found.best_key}-all") if (folder / "audit.json").is_file() else None
    if kept is None:
        kept = _trained_again(lab, item, found.budget, found.best_key, found.summary.seed)
    return kept[:count]


def _trained_again(lab: Lab, item: Item, budget_name: str, key: str, seed: int) -> Tensor:
    budget = BUDGETS[budget_name]
    trial = next((one for trial in budget.trials if (one := replace(trial, seed=seed)).key == key), None)
    if trial is None:
        raise AuditError(f"the budget {budget.name!r} has no trial {key!r}; audit {item.name} again")
    folder = audit_folder(lab, item) / "again"
    identity = {"obfuscator": lab.bundle(item).files[OBFUSCATOR_ONNX], "trial": repr(trial), "test": lab.test.sha256}
    store = ResultStore(folder, identity, resume=(folder / "audit.json").is_file(), overwrite=False)
    trials = Trials(setting_of(lab, item), budget, store, lab.device, lab.progress)
    done = store.once(trial.key, AnyTrial, lambda: trials.run(trial))
    reconstructed = stored_images(folder, f"{trial.key}-all")
    if reconstructed is None:
        why = done.reason if isinstance(done, LostTrial) else "nothing was kept"
        raise AuditError(f"the best attacker on {item.name} could not be trained again: {why}")
    return reconstructed
