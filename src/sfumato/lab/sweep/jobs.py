"""One point of a sweep: an ordinary training and an ordinary audit, made in whatever process it is given to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.artifacts.bundle import MANIFEST, OBFUSCATOR_ONNX, Bundle
from sfumato.errors import AuditError, RecipeError, ResultsError, TrainingError
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.run import Comparison, record
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.audit.targets import bundle_target
from sfumato.lab.classifiers import classifier_bundle, load_classifier
from sfumato.lab.data import ImageSet, load_train_test
from sfumato.lab.runs.audits import findings, finish_audit
from sfumato.lab.runs.folders import read_json
from sfumato.lab.runs.trainings import State, finish_training, state_of
from sfumato.lab.training import ClassifierRecipe, Run
from sfumato.lab.training.recipe import AnyRecipe, DataRecipe, parse_recipe
from sfumato.progress import Progress, silent


@dataclass(frozen=True)
class Attack:
    """How a point is audited.

    Attributes:
        budget: how hard the attackers try.
        local: folder of the bundle of the classifier on the device; None if there is none.
        images: use only so many training and test images each; None for all.
    """

    budget: Budget
    local: str | None = None
    images: int | None = None


@dataclass(frozen=True)
class Job:
    """What is made for one point; plain values, so that another process can take it.

    Attributes:
        name: of the point.
        recipe: validated, as plain values.
        folder: of the run; the audit lies in it.
        attack: how it is audited; None for a classifier.
    """

    name: str
    recipe: dict[str, Any]
    folder: str
    attack: Attack | None

    @property
    def run(self) -> Run:
        """The files of the training."""
        return Run(Path(self.folder))

    @property
    def audit(self) -> Path:
        """The folder of the audit."""
        assert self.attack is not None
        count = "" if self.attack.images is None else f"-{self.attack.images}"
        return Path(self.folder) / f"audit-{self.attack.budget.name}{count}"


def make(job: Job, progress: Progress = silent) -> None:
    """Trains and audits a point; whatever was made before is kept.

    Args:
        job: the point.
        progress: see `sfumato.progress.Progress`.

    Raises:
        SfumatoError: it cannot be trained or audited, or its folder holds something else.
        Interrupted: Ctrl-C or SIGTERM; what was done is kept.
    """
    recipe = parse_recipe(job.recipe, where=job.name)
    if is_done(job):
        return
    if training_state(job).name != "done":
        finish_training(recipe, job.run)
    if job.attack is None:
        return
    assert not isinstance(recipe, ClassifierRecipe)
    bundle = Bundle.load(job.run.bundle, kind="obfuscator")
    train, test = images(recipe.data, job.attack.images)
    local, path = job.attack.local, classifier_bundle(recipe.classifier, job.run.classifier)
    classifier = load_classifier(path)
    train, test = train.of_classes(classifier.labels), test.of_classes(classifier.labels)
    found = finish_audit(
        AttackSetting(bundle_target(bundle), train, test, classifier=classifier.net),
        job.attack.budget,
        job.audit,
        comparison=Comparison(
            classifier=Bundle.load(path, kind="classifier"),
            local=Bundle.load(local, kind="classifier") if local else None,
        ),
        device=fastest_device(),
        progress=progress,
    )
    record(bundle, found)


def training_state(job: Job) -> State:
    """How far a point's training is.

    Raises:
        TrainingError: its folder holds the training of another recipe.
        BundleError: its bundle is damaged.
    """
    state = state_of(job.run)
    if state.name == "done" and not _same_recipe(
        Bundle.load(job.run.bundle).recipe.to_json(), parse_recipe(job.recipe)
    ):
        raise TrainingError(
            f"{job.folder} was trained by another recipe; sweep into another folder, or move it away, then it is "
            "trained again"
        )
    return state


def known_audit(job: Job) -> AuditResult | None:
    """A point's audit, if it was made.

    Raises:
        AuditError: it is damaged, or was made of another obfuscator, with another budget or beside other classifiers.
    """
    assert job.attack is not None
    place = job.audit / "audit.json"
    try:
        about = read_json(findings(job.audit))
        if about is None or not place.is_file():
            return None
        found = AuditResult.read(place)
    except (AuditError, ResultsError) as error:
        raise AuditError(f"{error}; move it away, then the audit is made again") from error
    bundle = Bundle.load(job.run.bundle, kind="obfuscator")
    stated = {
        "obfuscator": found.target.fingerprint == bundle.files[OBFUSCATOR_ONNX],
        "classifier": about.get("classifier") == bundle.classifier_fingerprint,
        "classifier on the device": about.get("local") == _fingerprint(job.attack.local),
        "budget": about.get("budget") == repr(job.attack.budget),
    }
    if other := [what for what, same in stated.items() if not same]:
        raise AuditError(
            f"{job.audit} is the audit with another {', another '.join(other)}; sweep into another folder, or move it "
            "away, then it is made again"
        )
    return found


def is_done(job: Job) -> bool:
    """Whether nothing is left to do for a point.

    Raises:
        SfumatoError: its folder holds something else, or something damaged.
    """
    return training_state(job).name == "done" and (job.attack is None or known_audit(job) is not None)


def images(recipe: DataRecipe, count: int | None) -> tuple[ImageSet, ImageSet]:
    """Training and test images of an audit.

    Args:
        recipe: the data's.
        count: use only so many of each; None for all.

    Raises:
        RecipeError: the recipe names columns, which audits find by their types, or streams.
        DataError: see `sfumato.lab.data.load_train_test`.
    """
    if recipe.image_column or recipe.label_column:
        raise RecipeError("an audit finds the columns of images and classes by itself; sweep a recipe without them")
    if recipe.stream:
        raise RecipeError("an audit needs its images in memory; sweep a recipe without data.stream")
    train, test, _ = load_train_test(recipe.source, size=recipe.size)
    return train.subset(count), test.subset(count)


def fastest_device() -> torch.device:
    """Where attackers are trained."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _fingerprint(local: str | None) -> str | None:
    """Of the classifier on the device; of one that is not trained yet, none that an audit could know."""
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
Say = Callable[[str], None]
"""Is told a line for people."""
Engine = Callable[[Sequence[Job], Make, Say], dict[str, str]]
"""Makes points; gives back what went wrong, by the point's name. The others are made all the same."""
