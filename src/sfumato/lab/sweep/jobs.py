"""One point of a sweep: an ordinary training and an ordinary audit, made in any process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.artifacts.bundle import MANIFEST, OBFUSCATOR_ONNX, Bundle
from sfumato.errors import AuditError, RecipeError, TrainingError
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.run import Comparison, record
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.audit.targets import bundle_target
from sfumato.lab.classifiers import classifier_bundle, load_classifier
from sfumato.lab.data import ImageSet, load_train_test
from sfumato.lab.runs.audits import finish_audit, read_audit, read_begun
from sfumato.lab.runs.trainings import State, finish_training, state_of
from sfumato.lab.training import ClassifierRecipe, Run
from sfumato.lab.training.recipe import AnyRecipe, DataRecipe, parse_recipe
from sfumato.progress import Progress, Say, silent


@dataclass(frozen=True)
class AuditOptions:
    """How a point is audited.

    Attributes:
        budget: attack budget.
        local: folder of the on-device baseline's bundle; None without one.
        images: number of training and of test images; None for all.
    """

    budget: Budget
    local: str | None = None
    images: int | None = None


@dataclass(frozen=True)
class Job:
    """The making of one point; can be pickled for another process.

    Attributes:
        name: of the point.
        recipe: validated.
        folder: of the run, with the audit in it.
        audit: how it is audited; None for a classifier.
    """

    name: str
    recipe: AnyRecipe
    folder: str
    audit: AuditOptions | None

    @property
    def run(self) -> Run:
        """The files of the training."""
        return Run(Path(self.folder))

    @property
    def audit_folder(self) -> Path:
        """The folder of the audit."""
        assert self.audit is not None
        count = "" if self.audit.images is None else f"-{self.audit.images}"
        return Path(self.folder) / f"audit-{self.audit.budget.name}{count}"


def make(job: Job, progress: Progress = silent) -> None:
    """Train and audit a point, or what is missing of it.

    Raises:
        SfumatoError: it cannot be trained or audited, or its folder holds something else.
        Interrupted: Ctrl-C or SIGTERM; the state is kept.
    """
    recipe = job.recipe
    if is_done(job):
        return
    if training_state(job).name != "done":
        finish_training(recipe, job.run)
    if job.audit is None:
        return
    assert not isinstance(recipe, ClassifierRecipe)
    bundle = Bundle.load(job.run.bundle, kind="obfuscator")
    train, test = images(recipe.data, job.audit.images)
    local, path = job.audit.local, classifier_bundle(recipe.classifier, job.run.classifier)
    classifier = load_classifier(path)
    train, test = train.of_classes(classifier.labels), test.of_classes(classifier.labels)
    found = finish_audit(
        AttackSetting(bundle_target(bundle), train, test, classifier=classifier.net),
        job.audit.budget,
        job.audit_folder,
        comparison=Comparison(
            classifier=Bundle.load(path, kind="classifier"),
            local=Bundle.load(local, kind="classifier") if local else None,
        ),
        device=fastest_device(),
        progress=progress,
    )
    record(bundle, found)


def training_state(job: Job) -> State:
    """Return how far a point's training is.

    Raises:
        TrainingError: its folder holds the training of another recipe.
        BundleError: its bundle is damaged.
    """
    state = state_of(job.run)
    if state.name == "done" and not _same_recipe(Bundle.load(job.run.bundle).recipe.to_json(), job.recipe):
        raise TrainingError(
            f"{job.folder} was trained by another recipe; sweep into another folder, or move it away to train it again"
        )
    return state


def known_audit(job: Job) -> AuditResult | None:
    """Read a point's audit; return None if it was not made.

    Raises:
        AuditError: it is damaged, or of another obfuscator, budget or classifier.
    """
    assert job.audit is not None
    found, about = read_audit(job.audit_folder / "audit.json"), read_begun(job.audit_folder)
    if found is None or about is None:
        return None
    bundle = Bundle.load(job.run.bundle, kind="obfuscator")
    stated = {
        "obfuscator": found.target.fingerprint == bundle.files[OBFUSCATOR_ONNX],
        "classifier": about.classifier == bundle.classifier_fingerprint,
        "on-device baseline": about.local == _fingerprint(job.audit.local),
        "budget": about.budget == repr(job.audit.budget),
    }
    if other := [what for what, same in stated.items() if not same]:
        raise AuditError(
            f"{job.audit_folder} is the audit with another {', another '.join(other)}; sweep into another folder, or "
            "move it away to make it again"
        )
    return found


def is_done(job: Job) -> bool:
    """Return whether nothing is left to do for a point.

    Raises:
        SfumatoError: its folder holds something else, or something damaged.
    """
    return training_state(job).name == "done" and (job.audit is None or known_audit(job) is not None)


def images(recipe: DataRecipe, count: int | None) -> tuple[ImageSet, ImageSet]:
    """Load the training and test images of an audit, `count` of each or all.

    Raises:
        RecipeError: the recipe names columns, which audits find by their types, or streams.
        DataError: see `sfumato.lab.data.load_train_test`.
    """
    if recipe.image_column or recipe.label_column:
        raise RecipeError("an audit finds the columns of images and classes by itself; sweep a recipe without them")
    if recipe.stream:
        raise RecipeError("an audit needs its images in memory; sweep a recipe without data.stream")
    train, test, _ = load_train_test(recipe.source, size=recipe.size, allow_outside=recipe.allow_outside)
    return train.subset(count), test.subset(count)


def fastest_device() -> torch.device:
    """Return the device that attackers are trained on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _fingerprint(local: str | None) -> str | None:
    """Return the on-device baseline's fingerprint; if it is not trained yet, a text that no audit has."""
    if local is None:
        return None
    trained = (Path(local) / MANIFEST).is_file()
    return Bundle.load(local, kind="classifier").classifier_fingerprint if trained else "not trained yet"


def _same_recipe(stated: dict[str, Any], wanted: AnyRecipe) -> bool:
    try:
        return parse_recipe(stated) == wanted  # what a recipe does not say has its default
    except RecipeError:
        return False


Make = Callable[[Job], None]
"""Trains and audits a point."""
Engine = Callable[[Sequence[Job], Make, Say], dict[str, str]]
"""Makes points; returns the error of each that failed, by the point's name."""
