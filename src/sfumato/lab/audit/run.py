"""The audit from end to end: sanity checks, attackers, re-identification, attributes, certificate, verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sfumato import __version__
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.provenance import provenance
from sfumato.errors import AuditError, Interrupted
from sfumato.lab.attacks.identification import Identification, identify
from sfumato.lab.attacks.image_attributes import Attribute, infer
from sfumato.lab.attacks.protocol import CPU, AttackBudget
from sfumato.lab.attacks.target import Coded, Noisy, NoisyWithin, Target
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.budget import BUDGETS, Budget, Trial
from sfumato.lab.audit.certificate import certify, certify_code
from sfumato.lab.audit.label_attributes import Columns, infer_columns
from sfumato.lab.audit.points import frontier_of
from sfumato.lab.audit.references import references
from sfumato.lab.audit.result_store import ResultStore, cached
from sfumato.lab.audit.sanity_checks import decoder_checks, trial_checks
from sfumato.lab.audit.schema import (
    SCHEMA,
    AnyTrial,
    AuditResult,
    AuditSummary,
    BudgetFacts,
    Certificate,
    DataFacts,
    DoneTrial,
    GateFigures,
    LostTrial,
    Point,
    Provenance,
    Reference,
    SanityCheck,
    TargetFacts,
    Utility,
    best_of,
    recorded,
)
from sfumato.lab.audit.selective import gate_figures, gated_plain
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.audit.trials import Trials
from sfumato.lab.audit.verdict import UNDECIDED, decide
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.evaluation.accuracy import classify
from sfumato.lab.evaluation.measures import SSIM_WINDOW
from sfumato.lab.models.codewords import distinct
from sfumato.progress import Progress, silent

T = TypeVar("T")
_CERTIFICATE_IMAGES = 10_000
_REFERENCE_PIXELS, _LEAST_REFERENCE_IMAGES = 12_000_000, 500
"""What references are measured on at most: all of CIFAR-10's test images, fewer of larger ones; each row says so."""


@dataclass(frozen=True)
class Comparison:
    """What the obfuscator is compared with.

    Attributes:
        classifier: what the obfuscated images are for; None leaves accuracies out.
        local: the on-device baseline: a classifier that fits the device's own budget.
        points: of other audits, for the plot; see `sfumato.lab.audit.points.collect`.
        attributes: label columns besides the class.
    """

    classifier: Bundle | None = None
    local: Bundle | None = None
    points: tuple[Point, ...] = ()
    attributes: Columns | None = None


def audit(
    setting: AttackSetting,
    budget: Budget,
    folder: Path,
    *,
    comparison: Comparison | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: torch.device = CPU,
    progress: Progress = silent,
) -> AuditResult:
    """Attack an obfuscator with all that the budget allows, judge what was found, and write `audit.json`.

    `sfumato.lab.report.folder.render_audit` makes the report of it.

    Args:
        setting: the obfuscator, the images, and what attackers know.
        budget: of the attackers.
        folder: is created; `work/` in it keeps the findings one by one.
        comparison: what to compare with.
        resume: resume an interrupted audit.
        overwrite: restart although there is one.
        device: where attackers are trained.
        progress: see `sfumato.progress.Progress`; the outer stage is "audit".

    Raises:
        AuditError: images that the obfuscator does not take, a folder with an audit, or a disk that refuses.
        Interrupted: Ctrl-C or SIGTERM; the findings so far are kept.
    """
    size = setting.target.height, setting.target.width
    for images in (setting.train, setting.test):
        if tuple(images.images.shape[2:]) != size:
            raise AuditError(f"images are {tuple(images.images.shape[2:])}, the obfuscator takes {size}; give a size")
    if min(size) < SSIM_WINDOW:
        raise AuditError(
            f"images of {size[0]}x{size[1]} are too small to measure: {SSIM_WINDOW} pixels on a side at least"
        )
    comparison = comparison or Comparison()
    store = ResultStore(folder / "work", _identity(setting, budget, comparison), resume=resume, overwrite=overwrite)
    try:
        result = _Run(setting, budget, store, comparison, device, progress).result()
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; the findings so far are in {folder}: go on with --resume") from None
    result.write(folder / "audit.json")
    return result


def record(bundle: Bundle, result: AuditResult) -> bool:
    """Put an audit's figures into the obfuscator's bundle, unless one with a larger budget has found as much.

    Returns:
        Whether they were put there.

    Raises:
        AuditError: the bundle's audit is broken.
        BundleError: the disk refuses.
    """
    kept = recorded(bundle)
    if kept is not None and _spent(kept) > _spent(result) and _leakage(kept) >= _leakage(result):
        return False
    replace(bundle, figures=bundle.figures.updated(audit=result.summary.as_json)).save()
    return True


def _spent(audit: AuditSummary) -> int:
    """Training images over all decoders that an audit's budget allowed."""
    named = BUDGETS.get(audit.budget.name)
    return audit.budget.images if audit.budget.images is not None else named.images if named else 0


def _leakage(audit: AuditSummary) -> float:
    return 0.0 if audit.best is None else audit.best.excess_leakage


def _identity(setting: AttackSetting, budget: Budget, comparison: Comparison) -> dict[str, Any]:
    """What must be the same for findings to be mixed."""
    target, shadow = setting.target, setting.shadow
    return {
        "schema": SCHEMA,
        "sfumato": __version__,
        "obfuscator": [target.name, target.fingerprint or _behaviour(target, setting.test.images)],
        "shadow": [shadow.name, shadow.fingerprint] if shadow else None,
        "classifier": comparison.classifier.classifier_fingerprint if comparison.classifier else None,
        "local": comparison.local.classifier_fingerprint if comparison.local else None,
        "other": None if setting.other is None else hashlib.sha256(setting.other.numpy().tobytes()).hexdigest(),
        "attributes": sorted(comparison.attributes or {}),
        "budget": repr(budget),
        "data": [setting.train.sha256, setting.test.sha256, len(setting.train), len(setting.test)],
    }


def _behaviour(target: Target, images: Tensor) -> str:
    """A callable is known by its payload, to three digits; a stochastic one by its name alone."""
    if target.stochastic:
        return ""
    sent = (target.payload(images[:4].float() / 255) * 1e3).round().numpy().astype(np.int64)
    return hashlib.sha256(sent.tobytes()).hexdigest()


class _Run:
    """One audit."""

    def __init__(
        self,
        setting: AttackSetting,
        budget: Budget,
        store: ResultStore,
        comparison: Comparison,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.setting, self.budget, self.store, self.comparison = setting, budget, store, comparison
        self.device, self.progress = device, progress
        self.trials = Trials(setting, budget, store, device, progress)
        self.steps_done = 0
        self.steps = len(self.trials.planned) + budget.seeds - 1 + 6 + bool(setting.target.gate)

    def result(self) -> AuditResult:
        """Run every step that was not done before."""
        self.progress("audit", 0, self.steps)
        utility = self._step("accuracy", Utility | None, self._utility)
        table = self._step("references", tuple[Reference, ...], self._references)
        checks = self._step("sanity checks", tuple[SanityCheck, ...], self._sanity_checks, "sanity-checks")
        first = [self._trial(trial) for trial in self.trials.planned]
        trials = [*first, *(self._trial(trial) for trial in self._repeated(first))]
        best = best_of(trials)
        identification = self._step("identification", tuple[Identification, ...], lambda: self._identification(first))
        attributes = self._step("attributes", tuple[Attribute, ...], self._attributes)
        certificate, note = self._step("certificate", tuple[Certificate | None, str], self._certificate)
        gate = self._step("gate", GateFigures | None, lambda: self._gate(best)) if self.setting.target.gate else None
        self.progress("audit", self.steps, self.steps)
        class_mean_mse = self.trials.class_mean_mse(len(self.setting.test))
        done = [trial for trial in trials if isinstance(trial, DoneTrial)]
        found = AuditResult(
            target=self._target(),
            budget=BudgetFacts(name=self.budget.name, description=self.budget.description, images=self.budget.images),
            data=self._data(),
            utility=utility,
            class_mean_mse=class_mean_mse,
            references=table,
            trials=tuple(trials),
            identification=identification,
            attributes=attributes,
            sanity_checks=checks + trial_checks(done, class_mean_mse),
            certificate=certificate,
            certificate_note=note,
            best=None if best is None else best.model_copy(update={"curve": ()}),
            gate=gate,
            frontier=(),
            verdict=UNDECIDED,
            provenance=self._provenance(trials),
        )
        points = frontier_of(found, self.comparison.points)
        return found.model_copy(update={"frontier": points, "verdict": decide(found)})

    def _step(self, stage: str, kind: Any, find: Callable[[], T], key: str | None = None) -> T:
        """One step of the audit: from the store, by its key there, or found now."""
        self.progress(stage, 0, 1)
        found = self.store.once(key or stage, kind, find)
        self.steps_done += 1
        self.progress(stage, 1, 1)
        self.progress("audit", self.steps_done, self.steps)
        return found

    def _target(self) -> TargetFacts:
        target, shadow = self.setting.target, self.setting.shadow
        return TargetFacts(
            name=target.name,
            kind=target.kind,
            height=target.height,
            width=target.width,
            stochastic=target.stochastic,
            fingerprint=target.fingerprint,
            gradients=target.module is not None,
            shadow=shadow.name if shadow else None,
        )

    def _data(self) -> DataFacts:
        train, test = self.setting.train, self.setting.test
        return DataFacts(
            source=train.source,
            train_images=len(train),
            test_images=len(test),
            sha256={"train": train.sha256, "test": test.sha256},
        )

    def _provenance(self, trials: Sequence[DoneTrial | LostTrial]) -> Provenance:
        facts = provenance(
            seeds=sorted({trial.seed for trial in trials}),
            accelerator=self.device.type,
            threads=torch.get_num_threads(),
            seconds=round(sum(trial.seconds for trial in trials), 1),
        )
        return Provenance.model_validate(facts.to_json())

    def _utility(self) -> Utility | None:
        classifier, local, test = self.comparison.classifier, self.comparison.local, self.setting.test
        if classifier is None or not self._knows_classes(classifier):
            return None
        run = OnnxFunction(classifier.file(CLASSIFIER_ONNX))
        hits = 0
        for start in range(0, len(test), INFERENCE_BATCH):
            self.progress("accuracy", start, len(test))
            payload = self.setting.target.payload(test.images[start : start + INFERENCE_BATCH].float() / 255)
            labels = test.labels[start : start + INFERENCE_BATCH].numpy()
            hits += int((run(payload.numpy()).argmax(axis=1) == labels).sum())
        plain = classify(classifier, test)
        own = classify(local, test) if local else None
        errors = self.trials.class_mean_errors
        return Utility(
            accuracy_plain=float((plain.argmax(dim=1) == test.labels).double().mean()),
            accuracy_obfuscated=hits / len(test),
            accuracy_local=None if own is None else float((own.argmax(dim=1) == test.labels).double().mean()),
            gated_plain=() if own is None else gated_plain(own, plain, test.labels, errors),
            test_images=len(test),
        )

    def _references(self) -> tuple[Reference, ...]:
        if not self.budget.references:
            return ()
        train, test = self.setting.train, self.setting.test
        pixels = test.images.shape[2] * test.images.shape[3]
        test = test.subset(max(_LEAST_REFERENCE_IMAGES, _REFERENCE_PIXELS // pixels))
        of = (train.sha256, test.sha256, len(train), len(test))
        find = lambda: references(train, test, progress=self.progress)  # noqa: E731
        return cached("references", str(of), tuple[Reference, ...], find)

    def _sanity_checks(self) -> tuple[SanityCheck, ...]:
        images = self.budget.sanity_check_images
        if not images:
            return ()
        train, test = self.setting.train, self.setting.test
        return decoder_checks(train, test, images=images, device=self.device, progress=self.progress)

    def _repeated(self, trials: Sequence[DoneTrial | LostTrial]) -> Iterator[Trial]:
        best = best_of(trials)
        for seed in range(1, self.budget.seeds):
            for trial in self.trials.planned:
                if best is not None and trial.key == best.key:
                    yield replace(trial, seed=seed)

    def _trial(self, trial: Trial) -> DoneTrial | LostTrial:
        known = self.store.known(trial.key, AnyTrial)
        if known is not None and known.status == "failed":  # is tried again: the disk may have been full
            self.store.forget(trial.key)
        found = self._step(trial.title, AnyTrial, lambda: self.trials.run(trial), trial.key)
        self.progress(f"{trial.title}: reconstructing", 1, 1)
        return found

    def _identification(self, trials: Sequence[DoneTrial | LostTrial]) -> tuple[Identification, ...]:
        setting, count = self.setting, min(self.budget.test_images, len(self.setting.test))
        prepared = self.trials.strongest_decoder(trials)
        found = identify(
            setting.knowledge(Threat.WHITE_BOX),
            setting.observed(Threat.WHITE_BOX, count),
            setting.test.images[:count],
            setting.test.labels[:count],
            reconstruct=prepared.reconstruct if prepared else None,
            budget=self._attack_budget(self.budget.identification_images, "identification"),
            observe=setting.target.observe,
            seed=setting.seed,
        )
        return tuple(found)

    def _attributes(self) -> tuple[Attribute, ...]:
        setting, count = self.setting, min(self.budget.test_images, len(self.setting.test))
        budget = self._attack_budget(self.budget.attribute_images, "attributes")
        found = infer(
            setting.knowledge(Threat.WHITE_BOX),
            setting.target.observe,
            setting.test.images[:count],
            setting.test.labels[:count],
            setting.train.labels,
            budget=budget,
            seed=setting.seed,
        )
        if self.comparison.attributes:
            budget = replace(budget, images=self.budget.column_images)
            count = self.budget.column_test_images
            found += infer_columns(setting, self.comparison.attributes, budget=budget, test_images=count)
        return tuple(found)

    def _attack_budget(self, images: int, stage: str) -> AttackBudget:
        return AttackBudget(images, 0, device=self.device, progress=self.progress, stage=stage)

    def _certificate(self) -> tuple[Certificate | None, str]:
        target = self.setting.target
        if isinstance(target.module, Coded):
            bits = target.module.code_bits
            seen = self.setting.observed(Threat.WHITE_BOX, len(self.setting.test))
            if (values := distinct(seen)) > 2**bits:
                return None, f"a code of {bits} bits is stated, but {values:,} different payloads were sent"
            note = "It holds for every attacker, for one image; each further image adds as many bits."
            return certify_code(bits, gated=target.gate is not None), note
        if not target.stochastic:
            return None, "without noise nothing bounds what an attacker may reconstruct"
        noise = target.module.noisy_code if isinstance(target.module, NoisyWithin) else target.module
        if not isinstance(noise, Noisy):
            return None, "the obfuscator is stochastic, but does not say what its noise is"
        try:
            certificate = certify(noise, self.setting.train.images[:_CERTIFICATE_IMAGES], progress=self.progress)
        except AuditError as error:
            return None, str(error)
        return certificate, "It holds for one obfuscation of an image; each further one weakens it."

    def _gate(self, best: DoneTrial | None) -> GateFigures | None:
        if best is None:
            return None
        served = self.comparison.classifier
        run = OnnxFunction(served.file(CLASSIFIER_ONNX)) if served and self._knows_classes(served) else None
        return gate_figures(
            self.setting,
            best=best,
            reconstructed=self.store.tensors(f"{best.key}-all")["reconstructed"],
            class_mean_errors=self.trials.class_mean_errors,
            logits=(lambda payload: torch.from_numpy(run(payload.numpy()))) if run else None,
            progress=self.progress,
        )

    def _knows_classes(self, classifier: Bundle) -> bool:
        return tuple(self.setting.test.names) == tuple(classifier.labels)
