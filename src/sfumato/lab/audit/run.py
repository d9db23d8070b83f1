"""The audit from end to end: controls, attackers, identification, attributes, certificate, verdict, report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import __version__
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, Bundle, write_json
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.provenance import provenance
from sfumato.errors import AuditError, Interrupted
from sfumato.lab.attacks.identification import identify
from sfumato.lab.attacks.image_attributes import infer
from sfumato.lab.attacks.protocol import CPU, Effort
from sfumato.lab.attacks.target import Coded, Noisy, NoisyWithin, Target
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.budget import Budget, Trial
from sfumato.lab.audit.certificate import certify, certify_code
from sfumato.lab.audit.consistency import trial_controls
from sfumato.lab.audit.label_attributes import ask
from sfumato.lab.audit.references import references
from sfumato.lab.audit.result_store import Notebook, remembered
from sfumato.lab.audit.sanity_checks import decoder_controls
from sfumato.lab.audit.selective import gate_figures, gated_plain
from sfumato.lab.audit.setting import Scene
from sfumato.lab.audit.trials import Attempts, best_of
from sfumato.lab.audit.verdict import SCHEMA, decide
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.evaluation.accuracy import classify
from sfumato.lab.evaluation.measures import SSIM_WINDOW
from sfumato.lab.models.codewords import distinct
from sfumato.lab.report.html import write_report
from sfumato.lab.report.panels import save_panel, showcase
from sfumato.lab.report.points import gated_plain_points, gated_point

_CERTIFICATE_IMAGES = 10_000
_REFERENCE_PIXELS, _LEAST_REFERENCE_IMAGES = 12_000_000, 500
"""What references are measured on at most: all of CIFAR-10's test images, fewer of larger ones; each row says so."""

Progress = Callable[[int, int, str, int, int], None]
"""Is told (steps of the audit done, in all, what runs now, its own steps done, in all)."""


@dataclass(frozen=True)
class Beside:
    """What the bundle is compared with.

    Attributes:
        classifier: what the obfuscated images are for; None leaves accuracies out.
        local: a classifier that fits the device's own budget.
        points: of other audits, for the frontier plot; see `sfumato.lab.report.points.collect`.
        attributes: label columns besides the class: name -> values of training and test images, (N,) and (M,) int64.
    """

    classifier: Bundle | None = None
    local: Bundle | None = None
    points: tuple[dict[str, Any], ...] = ()
    attributes: dict[str, tuple[Tensor, Tensor]] | None = None


def audit(
    scene: Scene,
    budget: Budget,
    folder: Path,
    *,
    beside: Beside | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: torch.device = CPU,
    progress: Progress = lambda done, total, what, part, parts: None,
) -> dict[str, Any]:
    """Attacks an obfuscator with all that the budget allows; writes `audit.json`, `audit.html` and `panel.png`.

    Args:
        scene: the obfuscator, the images, and who knows what.
        budget: how hard the attackers try.
        folder: is created; `work/` in it keeps the findings one by one.
        beside: what to compare with.
        resume: go on with an interrupted audit.
        overwrite: start anew although there is one.
        device: where attackers are trained.
        progress: see `Progress`.

    Returns:
        The content of `audit.json`.

    Raises:
        AuditError: images that the obfuscator does not take, a folder with an audit, or a disk that refuses.
        Interrupted: Ctrl-C or SIGTERM; the findings so far are kept.
    """
    size = scene.target.height, scene.target.width
    for images in (scene.train, scene.test):
        if tuple(images.images.shape[2:]) != size:
            raise AuditError(f"images are {tuple(images.images.shape[2:])}, the obfuscator takes {size}; give a size")
    if min(size) < SSIM_WINDOW:
        raise AuditError(
            f"images of {size[0]}x{size[1]} are too small to measure: {SSIM_WINDOW} pixels on a side at least"
        )
    beside = beside or Beside()
    notebook = Notebook(folder / "work", _identity(scene, budget, beside), resume=resume, overwrite=overwrite)
    run = _Run(scene, budget, notebook, beside, device, progress)
    try:
        found = run.everything()
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; the findings so far are in {folder}: go on with --resume") from None
    write_json(folder / "audit.json", found)
    write_report(found, showcase(scene, notebook, found), folder / "audit.html")
    save_panel(scene, notebook, found, folder / "panel.png")
    return found


def _identity(scene: Scene, budget: Budget, beside: Beside) -> dict[str, Any]:
    """What must be the same for findings to be mixed."""
    target, shadow = scene.target, scene.shadow
    return {
        "sfumato": __version__,
        "obfuscator": [target.name, target.fingerprint or _answers(target, scene.test.images)],
        "shadow": [shadow.name, shadow.fingerprint] if shadow else None,
        "classifier": beside.classifier.classifier_fingerprint if beside.classifier else None,
        "local": beside.local.classifier_fingerprint if beside.local else None,
        "other": None if scene.other is None else hashlib.sha256(scene.other.numpy().tobytes()).hexdigest(),
        "attributes": sorted(beside.attributes or {}),
        "budget": repr(budget),
        "data": [scene.train.sha256, scene.test.sha256, len(scene.train), len(scene.test)],
    }


def _answers(target: Target, images: Tensor) -> str:
    """A callable is known by what it gives, to three digits; a stochastic one by its name alone."""
    if target.stochastic:
        return ""
    sent = (target.payload(images[:4].float() / 255) * 1e3).round().numpy().astype(np.int64)
    return hashlib.sha256(sent.tobytes()).hexdigest()


class _Run:
    """One audit."""

    def __init__(
        self, scene: Scene, budget: Budget, notebook: Notebook, beside: Beside, device: torch.device, progress: Progress
    ) -> None:
        self.scene, self.budget, self.notebook, self.beside = scene, budget, notebook, beside
        self.device, self._progress = device, progress
        self.attempts = Attempts(scene, budget, notebook, device, lambda *now: self._progress(*self._place, *now))
        self.steps_done, self.steps = 0, len(self.attempts.trials) + budget.seeds - 1 + 6 + bool(scene.target.gate)

    def everything(self) -> dict[str, Any]:
        scene, test = self.scene, self.scene.test
        utility = self._step("accuracy", self._utility)
        table = self._step("references", self._references)
        controls = self._step("controls", self._controls)
        trials = [self._trial(trial) for trial in self.attempts.trials]
        first = list(trials)
        trials += [self._trial(trial) for trial in self._repeated(trials)]
        best = best_of(trials)
        identification = self._step("identification", lambda: self._identification(first))
        attributes = self._step("attributes", self._attributes)
        certificate, note = self._step("certificate", self._certificate)
        gate = self._step("gate", lambda: self._gate(best)) if scene.target.gate else None
        class_mean_mse = self.attempts.class_mean_mse(len(test))
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "target": {
                "name": scene.target.name,
                "kind": scene.target.kind,
                "height": scene.target.height,
                "width": scene.target.width,
                "stochastic": scene.target.stochastic,
                "fingerprint": scene.target.fingerprint,
                "gradients": scene.target.module is not None,
                "shadow": scene.shadow.name if scene.shadow else None,
            },
            "budget": {
                "name": self.budget.name,
                "says": self.budget.says,
                "images": self.budget.images,
            },
            "data": {
                "source": scene.train.source,
                "train_images": len(scene.train),
                "test_images": len(test),
                "sha256": {"train": scene.train.sha256, "test": test.sha256},
            },
            "utility": utility,
            "class_mean_mse": class_mean_mse,
            "references": table,
            "trials": trials,
            "identification": identification,
            "attributes": attributes,
            "controls": controls + [asdict(control) for control in trial_controls(trials, class_mean_mse)],
            "certificate": certificate,
            "certificate_note": note,
            "best": best,
            "gate": gate,
        }
        found["frontier"] = self._points(found)
        verdict = decide(found)
        found["verdict"] = {"finding": verdict.finding, "sentences": list(verdict.sentences)}
        found["provenance"] = provenance(
            seeds=sorted({trial["seed"] for trial in trials}),
            accelerator=self.device.type,
            threads=torch.get_num_threads(),
            seconds=round(sum(trial["seconds"] for trial in trials), 1),
        ).to_json()
        return found

    def _step(self, what: str, find: Callable[[], Any]) -> Any:
        self._progress(*self._place, what, 0, 1)
        found = self.notebook.once(what, find)
        self.steps_done += 1
        return found

    def _tell(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(*self._place, what, done, total)

    @property
    def _place(self) -> tuple[int, int]:
        return self.steps_done, self.steps

    def _utility(self) -> dict[str, Any] | None:
        classifier, local = self.beside.classifier, self.beside.local
        test = self.scene.test
        if classifier is None or not self._knows_classes(classifier):
            return None  # it knows nothing of these images' classes
        answers = OnnxFunction(classifier.file(CLASSIFIER_ONNX))
        hits = 0
        for start in range(0, len(test), INFERENCE_BATCH):
            self._tell("accuracy")(start, len(test))
            payload = self.scene.target.payload(test.images[start : start + INFERENCE_BATCH].float() / 255)
            labels = test.labels[start : start + INFERENCE_BATCH].numpy()
            hits += int((answers(payload.numpy()).argmax(axis=1) == labels).sum())
        plain = classify(classifier, test)
        own = classify(local, test) if local else None
        errors = self.attempts.class_mean_errors
        return {
            "accuracy_plain": float((plain.argmax(dim=1) == test.labels).double().mean()),
            "accuracy_obfuscated": hits / len(test),
            "accuracy_local": None if own is None else float((own.argmax(dim=1) == test.labels).double().mean()),
            "gated_plain": [] if own is None else gated_plain(own, plain, test.labels, errors),
            "test_images": len(test),
        }

    def _references(self) -> list[dict[str, Any]]:
        if not self.budget.references:
            return []
        train, test = self.scene.train, self.scene.test
        test = test.subset(
            max(_LEAST_REFERENCE_IMAGES, _REFERENCE_PIXELS // (test.images.shape[2] * test.images.shape[3]))
        )

        def find() -> list[dict[str, Any]]:
            rows = references(train, test, progress=self._tell("references"))
            return [{"name": row.name, "bits": row.bits, **asdict(row.figures)} for row in rows]

        of = (train.sha256, test.sha256, len(train), len(test))
        known: list[dict[str, Any]] = remembered("references", str(of), find)
        return known

    def _controls(self) -> list[dict[str, Any]]:
        if not self.budget.control_images:
            return []
        controls = decoder_controls(
            self.scene.train,
            self.scene.test,
            images=self.budget.control_images,
            device=self.device,
            progress=lambda what, done, total: self._tell(f"control: {what}")(done, total),
        )
        return [asdict(control) for control in controls]

    def _repeated(self, trials: list[dict[str, Any]]) -> Iterator[Trial]:
        best = best_of(trials)
        for seed in range(1, self.budget.seeds):
            for trial in self.attempts.trials:
                if best is not None and trial.key == best["key"]:
                    yield replace(trial, seed=seed)

    def _trial(self, trial: Trial) -> dict[str, Any]:
        self.notebook.forget_failed(trial.key)
        found: dict[str, Any] = self._step(trial.key, lambda: self.attempts.attempt(trial))
        return found

    def _identification(self, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
        scene, count = self.scene, min(self.budget.test_images, len(self.scene.test))
        prepared = self.attempts.strongest_decoder(trials)
        effort = Effort(self.budget.identification_images, 0, 0, self.device, progress=self._tell("identification"))
        found = identify(
            scene.knowledge(Threat.WHITE_BOX),
            scene.observed(Threat.WHITE_BOX, count),
            scene.test.images[:count],
            scene.test.labels[:count],
            reconstruct=prepared.reconstruct if prepared else None,
            effort=effort,
            observe=scene.target.observe,
            seed=scene.seed,
        )
        return [{**asdict(row), "threat": str(row.threat)} for row in found]

    def _attributes(self) -> list[dict[str, Any]]:
        scene, count = self.scene, min(self.budget.test_images, len(self.scene.test))
        effort = Effort(self.budget.attribute_images, 0, 0, self.device, progress=self._tell("attributes"))
        found = infer(
            scene.knowledge(Threat.WHITE_BOX),
            scene.target.observe,
            scene.test.images[:count],
            scene.test.labels[:count],
            scene.train.labels,
            effort=effort,
            seed=scene.seed,
        )
        if self.beside.attributes:
            effort = replace(effort, images=self.budget.column_images)
            count = self.budget.column_test_images
            found += ask(scene, self.beside.attributes, effort=effort, test_images=count)
        return [{**asdict(row), "threat": str(row.threat)} for row in found]

    def _certificate(self) -> tuple[dict[str, Any] | None, str]:
        target = self.scene.target
        if isinstance(target.module, Coded):
            bits = target.module.code_bits
            seen = self.scene.observed(Threat.WHITE_BOX, len(self.scene.test))
            if (values := distinct(seen)) > 2**bits:
                return None, f"a code of {bits} bits is stated, but {values:,} different things travelled"
            found = certify_code(bits, gated=target.gate is not None)
            return found.as_json(), "It holds whoever attacks, for one image; each further one tells as much again."
        if not target.stochastic:
            return None, "without noise nothing bounds what an attacker may reconstruct"
        noise = target.module.noisy_code if isinstance(target.module, NoisyWithin) else target.module
        if not isinstance(noise, Noisy):
            return None, "the obfuscator is stochastic, but does not say what its noise is"
        images = self.scene.train.images[:_CERTIFICATE_IMAGES]
        try:
            noisy = certify(noise, images, progress=self._tell("certificate"))
        except AuditError as error:
            return None, str(error)
        return noisy.as_json(), "It holds for one obfuscation of an image; each further one weakens it."

    def _gate(self, best: dict[str, Any] | None) -> dict[str, Any] | None:
        if best is None:
            return None
        served = self.beside.classifier
        answers = OnnxFunction(served.file(CLASSIFIER_ONNX)) if served and self._knows_classes(served) else None
        return gate_figures(
            self.scene,
            best=best,
            reconstructed=self.notebook.tensors(f"{best['key']}-all")["reconstructed"],
            class_mean_errors=self.attempts.class_mean_errors,
            answers=(lambda payload: torch.from_numpy(answers(payload.numpy()))) if answers else None,
            progress=self._tell("gate"),
        )

    def _knows_classes(self, classifier: Bundle) -> bool:
        return tuple(self.scene.test.names) == tuple(classifier.labels)

    def _points(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        utility, best = found["utility"], found["best"]
        if utility is None or best is None:
            return []
        own = {
            "name": self.scene.target.name,
            "accuracy": utility["accuracy_obfuscated"],
            "excess_leakage": best["excess_leakage"],
            "role": "this",
            "budget": self.budget.name,
            "source": "this audit",
            "best_attacker": best["attacker"],
        }
        ends = (("plain image", "identity", "plain", 1.0), ("classifier on the device", "local", "local", 0.0))
        points = [own, *gated_point(own, found["gate"]), *gated_plain_points(utility)] + [
            {**own, "name": name, "role": role, "accuracy": utility[f"accuracy_{key}"], "excess_leakage": leakage}
            | {"budget": None, "best_attacker": None}
            for name, role, key, leakage in ends
            if utility[f"accuracy_{key}"] is not None
        ]
        known = {point["role"] for point in points} | {own["name"], f"{own['name']}, gated"}
        return points + [point for point in self.beside.points if not {point["role"], point["name"]} & known]
