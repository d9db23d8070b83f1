"""The audit from end to end: sanity checks, attackers, re-identification, attributes, certificate, verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sfumato import __version__
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.onnx_file import ClassifierFunction
from sfumato.artifacts.provenance import provenance
from sfumato.errors import AuditError, Interrupted
from sfumato.lab.attacks.extraction import Extraction
from sfumato.lab.attacks.identification import Identification, identify, identify_reconstructed
from sfumato.lab.attacks.image_attributes import Attribute, infer
from sfumato.lab.attacks.protocol import CPU, AttackBudget
from sfumato.lab.attacks.target import Coded, NoisyWithin
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.bounds import Certificate
from sfumato.lab.audit.budget import BUDGETS, Budget, Trial
from sfumato.lab.audit.certificate import certify, certify_code
from sfumato.lab.audit.codes import code_facts
from sfumato.lab.audit.extraction import extract_training_set, extraction_check
from sfumato.lab.audit.label_attributes import Columns, column_checks, infer_columns
from sfumato.lab.audit.points import frontier_of
from sfumato.lab.audit.references import references
from sfumato.lab.audit.result_store import ResultStore, cached, stored_images
from sfumato.lab.audit.sampler_checks import sampler_checks
from sfumato.lab.audit.sanity_checks import decoder_checks, trial_checks
from sfumato.lab.audit.schema import (
    SCHEMA,
    AnyTrial,
    AuditResult,
    AuditSummary,
    BudgetFacts,
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
from sfumato.lab.audit.trials import ATTACKED, Trials
from sfumato.lab.audit.verdict import UNDECIDED, decide
from sfumato.lab.evaluation.accuracy import classify
from sfumato.lab.evaluation.evaluator import load_evaluator
from sfumato.lab.evaluation.measures import SSIM_WINDOW
from sfumato.lab.evaluation.recognition import Recogniser, RecognitionScale
from sfumato.progress import Progress, silent

T = TypeVar("T")
_CERTIFICATE_IMAGES = 10_000
_REFERENCE_PIXELS, _LEAST_REFERENCE_IMAGES = 12_000_000, 500
"""What references are measured on at most: all of CIFAR-10's test images, fewer of larger ones; each row says so."""


GALLERIES = (1_000, 10_000)
"""Test images of all classes that one is re-identified among; fewer where there are fewer, and each row says so."""
_POOL_NUMBERS = 1 << 28
"""Of the images in a gallery: 1 GiB."""


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

    `sfumato.lab.report.html.render_audit` makes the report of it.

    Args:
        setting: the obfuscator, the images, and what attackers know.
        budget: of the attackers.
        folder: is created; `work/` in it keeps the findings one by one.
        comparison: what to compare with.
        resume: resume an interrupted audit.
        overwrite: restart although there is one.
        device: where attackers are trained.
        progress: the outer stage is "audit".

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
    if kept is not None and _spent(kept) > _spent(result):
        before, now = (0.0 if audit.best is None else audit.best.excess_leakage for audit in (kept, result))
        if before >= now:
            return False
    replace(bundle, figures=bundle.figures.updated(audit=result.summary.as_json)).save()
    return True


def _spent(audit: AuditSummary) -> int:
    """Training images over all decoders that an audit's budget allowed."""
    named = BUDGETS.get(audit.budget.name)
    return audit.budget.images if audit.budget.images is not None else named.images if named else 0


def _identity(setting: AttackSetting, budget: Budget, comparison: Comparison) -> dict[str, object]:
    """What must be the same for findings to be mixed."""
    target, shadow, train, test = setting.target, setting.shadow, setting.train, setting.test
    behaviour = ""  # of a callable: its payload, to three digits
    if not target.fingerprint and not target.stochastic:
        sent = (target.payload(test.images[:4].float() / 255) * 1e3).round().numpy().astype(np.int64)
        behaviour = hashlib.sha256(sent.tobytes()).hexdigest()
    return {
        "schema": SCHEMA,
        "sfumato": __version__,
        "obfuscator": [target.name, target.fingerprint or behaviour],
        "bundle": dict(target.bundle.files) if target.bundle else None,
        "shadow": [shadow.name, shadow.fingerprint] if shadow else None,
        "classifier": comparison.classifier.classifier_identity if comparison.classifier else None,
        "local": comparison.local.classifier_identity if comparison.local else None,
        "other": None if setting.other is None else hashlib.sha256(setting.other.numpy().tobytes()).hexdigest(),
        "attributes": sorted(comparison.attributes or {}),
        "budget": repr(budget),
        "data": [train.sha256, test.sha256, len(train), len(test), len(setting.public)],
    }


@dataclass
class _Run:
    """One audit."""

    setting: AttackSetting
    budget: Budget
    store: ResultStore
    comparison: Comparison
    device: torch.device
    progress: Progress

    def __post_init__(self) -> None:
        self.trials = Trials(self.setting, self.budget, self.store, self.device, self.progress)
        self.tried = self.setting.test.subset(self.budget.test_images)
        self.steps_done = 0
        self.steps = len(self.trials.planned) + self.budget.seeds - 1 + 8 + bool(self.setting.target.gate)

    def result(self) -> AuditResult:
        """Run every step that was not done before."""
        setting, target = self.setting, self.setting.target
        self.progress("audit", 0, self.steps)
        utility = self._step("accuracy", Utility | None, self._utility)
        self.trials.train_prior()
        table = self._step("references", tuple[Reference, ...], self._references)
        checks = self._step("sanity checks", tuple[SanityCheck, ...], self._sanity_checks, "sanity-checks")
        scale, scale_note = self._recognition()
        first = [self._trial(trial) for trial in self.trials.planned]
        strongest = [trial for trial in self.trials.planned if (best := best_of(first)) and trial.key == best.key]
        repeated = [replace(trial, seed=seed) for seed in range(1, self.budget.seeds) for trial in strongest]
        trials = [*first, *map(self._trial, repeated)]
        best = best_of(trials)
        identification = self._step("identification", tuple[Identification, ...], lambda: self._identification(first))
        attributes = self._step("attributes", tuple[Attribute, ...], self._attributes)
        extraction = self._step("extraction", tuple[Extraction, ...], self._extraction)
        certificate, note = self._step("certificate", tuple[Certificate | None, str], self._certificate)
        gate = self._step("gate", GateFigures | None, lambda: self._gate(best)) if target.gate else None
        self.progress("audit", self.steps, self.steps)
        class_mean_mse = self.trials.class_mean_mse(len(setting.test))
        done = [trial for trial in trials if isinstance(trial, DoneTrial)]
        facts = provenance(
            seeds=sorted({trial.seed for trial in trials}),
            accelerator=self.device.type,
            threads=torch.get_num_threads(),
            seconds=round(sum(trial.seconds for trial in trials), 1),
        )
        found = AuditResult(
            target=TargetFacts.model_validate(
                vars(target)
                | {"gradients": target.module is not None, "shadow": setting.shadow.name if setting.shadow else None}
            ),
            budget=BudgetFacts(name=self.budget.name, description=self.budget.description, images=self.budget.images),
            data=DataFacts(
                source=setting.train.source,
                train_images=len(setting.train),
                test_images=len(setting.test),
                sha256={"train": setting.train.sha256, "test": setting.test.sha256},
                held_out=len(setting.train) - len(setting.public),
            ),
            utility=utility,
            class_mean_mse=class_mean_mse,
            references=table,
            trials=tuple(trials),
            recognition=scale,
            recognition_note=scale_note,
            identification=identification,
            attributes=attributes,
            extraction=extraction,
            sanity_checks=checks + trial_checks(done, class_mean_mse),
            certificate=certificate,
            certificate_note=note,
            best=None if best is None else best.model_copy(update={"curve": ()}),
            gate=gate,
            frontier=(),
            verdict=UNDECIDED,
            provenance=Provenance.model_validate(facts.to_json()),
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

    def _utility(self) -> Utility | None:
        classify_payload, local, test = self._classify_payload(), self.comparison.local, self.setting.test
        if self.comparison.classifier is None or classify_payload is None:
            return None
        payloads = (
            self.setting.target.payload(torch.from_numpy(batch))
            for batch, _ in test.scaled_batches("accuracy", self.progress)
        )
        predicted = torch.cat([classify_payload(payload).argmax(dim=1) for payload in payloads])
        plain = classify(self.comparison.classifier, test)
        own = classify(local, test) if local else None
        errors = self.trials.class_mean_errors

        def accuracy(classes: Tensor) -> float:
            return float((classes == test.labels).double().mean())

        return Utility(
            accuracy_plain=accuracy(plain.argmax(dim=1)),
            accuracy_obfuscated=accuracy(predicted),
            accuracy_local=None if own is None else accuracy(own.argmax(dim=1)),
            gated_plain=() if own is None else gated_plain(own, plain, test.labels, errors),
            test_images=len(test),
        )

    def _references(self) -> tuple[Reference, ...]:
        if not self.budget.references:
            return ()
        train, (height, width) = self.setting.train, self.setting.test.images.shape[2:]
        test = self.setting.test.subset(max(_LEAST_REFERENCE_IMAGES, _REFERENCE_PIXELS // (height * width)))
        of = (train.sha256, test.sha256, len(train), len(test))
        find = partial(references, train, test, progress=self.progress)
        return cached("references", of, tuple[Reference, ...], find)

    def _sanity_checks(self) -> tuple[SanityCheck, ...]:
        images, setting = self.budget.sanity_check_images, self.setting
        found = column_checks() if self.comparison.attributes else ()
        if not images:
            return found
        train, test = setting.public, setting.test  # the image prior is that of the attackers
        found += decoder_checks(train, test, images=images, device=self.device, progress=self.progress)
        found += sampler_checks(train, test, budget=self.budget, device=self.device, progress=self.progress)
        return found if setting.target.bundle is None else (*found, extraction_check(setting.train, setting.test))

    def _recognition(self) -> tuple[RecognitionScale | None, str]:
        """The ends of the measures; the trials get what judges their reconstructions."""
        setting, held_out, images = self.setting, self.setting.held_out, self.budget.evaluator_images
        if held_out is None or not images:
            return None, "no training images were held out for an evaluator"
        try:
            evaluator = load_evaluator(held_out, images=images, device=self.device, progress=self.progress)
        except AuditError as error:
            return None, str(error)
        self.trials.recogniser = recogniser = Recogniser(evaluator, setting.test.images, setting.test.labels)
        return self._step("recognition", RecognitionScale, lambda: recogniser.scale(setting.public)), ""

    def _trial(self, trial: Trial) -> DoneTrial | LostTrial:
        known = self.store.known(trial.key, AnyTrial)
        if known is not None and known.status == "failed":  # is tried again: the disk may have been full
            self.store.forget(trial.key)
        found = self._step(trial.title, AnyTrial, lambda: self.trials.run(trial), trial.key)
        self.progress(f"{trial.title}: reconstructing", 1, 1)
        return found

    def _identification(self, trials: Sequence[DoneTrial | LostTrial]) -> tuple[Identification, ...]:
        setting, test = self.setting, self.setting.test
        prepared, recogniser = self.trials.strongest_decoder(trials), self.trials.recogniser
        shown = max(len(self.tried), _POOL_NUMBERS // test.images[0].numel())
        found = identify(
            setting.knowledge(Threat.WHITE_BOX),
            setting.observed(Threat.WHITE_BOX, len(self.tried)),
            test.images[:shown],
            test.labels[:shown],
            reconstruct=prepared.reconstruct if prepared else None,
            budget=self._attack_budget(self.budget.identification_images, "identification"),
            observe=setting.target.observe,
            galleries=GALLERIES,
            embed=(lambda images: recogniser.evaluator.judge(images)[0]) if recogniser else None,
            seed=setting.seed,
        )
        for trial in trials:
            kept = stored_images(self.store.folder, f"{trial.key}-{ATTACKED}")
            if kept is not None and trial.status == "done" and trial.views == 1:
                drawn = kept[: len(self.tried)].float() / 255
                by = partial(identify_reconstructed, attacker=trial.attacker, threat=trial.threat, seed=setting.seed)
                found += by(drawn, self.tried.images, self.tried.labels)
        return tuple(found)

    def _attributes(self) -> tuple[Attribute, ...]:
        setting, tried, columns = self.setting, self.tried, self.comparison.attributes
        found = infer(
            setting.knowledge(Threat.WHITE_BOX),
            setting.target.observe,
            tried.images,
            tried.labels,
            setting.public.labels,
            budget=self._attack_budget(self.budget.attribute_images, "attributes"),
            seed=setting.seed,
        )
        if columns:
            budget = self._attack_budget(self.budget.column_images, "attributes")
            found += infer_columns(setting, columns, budget=budget, test_images=self.budget.column_test_images)
        return tuple(found)

    def _extraction(self) -> tuple[Extraction, ...]:
        setting = self.setting
        if setting.target.bundle is None:
            return ()
        return extract_training_set(setting.target.bundle, setting.train, setting.test, progress=self.progress)

    def _attack_budget(self, images: int, stage: str) -> AttackBudget:
        return AttackBudget(images, 0, device=self.device, progress=self.progress, stage=stage)

    def _certificate(self) -> tuple[Certificate | None, str]:
        target = self.setting.target
        if isinstance(target.module, Coded) and not target.stochastic:
            return self._certify_code(target.module.code_bits)
        if not target.stochastic:
            return None, "without noise nothing bounds what an attacker may reconstruct"
        noise = target.module.noisy_code if isinstance(target.module, NoisyWithin) else target.module
        try:
            certificate = certify(noise, self.setting.train.images[:_CERTIFICATE_IMAGES], progress=self.progress)
        except AuditError as error:
            return None, str(error)
        return certificate, "It holds for one obfuscation of an image; each further one weakens it."

    def _certify_code(self, bits: int) -> tuple[Certificate | None, str]:
        facts = code_facts(self.setting, bits, views_of=len(self.tried), progress=self.progress)
        if facts.observed > facts.values:
            stated = f"a code of {bits} bits, {facts.values:,.0f} values, is stated"
            return None, f"{stated}, but {facts.observed:,} different payloads were sent"
        return certify_code(bits, facts), "It holds for every attacker, for one image."

    def _gate(self, best: DoneTrial | None) -> GateFigures | None:
        reconstructed = stored_images(self.store.folder, f"{best.key}-all") if best else None
        if best is None or reconstructed is None:
            return None
        return gate_figures(
            self.setting,
            best=best,
            reconstructed=reconstructed,
            class_mean_errors=self.trials.class_mean_errors,
            logits=self._classify_payload(),
            progress=self.progress,
        )

    def _classify_payload(self) -> Callable[[Tensor], Tensor] | None:
        """The payload -> logits of the cloud's classifier; None without one for these classes."""
        served = self.comparison.classifier
        if served is None or tuple(self.setting.test.names) != tuple(served.labels):
            return None
        run = ClassifierFunction(served)
        return lambda payload: torch.from_numpy(run(payload.numpy()))
