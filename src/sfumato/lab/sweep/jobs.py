"""One point of a sweep, an ordinary training and an ordinary audit made in any process, and how points are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.artifacts.bundle import MANIFEST, OBFUSCATOR_ONNX, Bundle
from sfumato.errors import AuditError, Interrupted, RecipeError, SfumatoError, TrainingError
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.run import Comparison, record
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.audit.setting import HELD_OUT_SHARE, AttackSetting
from sfumato.lab.audit.targets import bundle_target
from sfumato.lab.classifiers import classifier_bundle, load_classifier
from sfumato.lab.data import ImageSet, load_train_test
from sfumato.lab.models.precision import fastest_device
from sfumato.lab.runs.audits import finish_audit, read_audit, read_begun
from sfumato.lab.runs.trainings import State, finish_training, state_of
from sfumato.lab.training import ClassifierRecipe, Run
from sfumato.lab.training.recipe import AnyRecipe, parse_recipe
from sfumato.lab.training.recipe_parts import DataRecipe
from sfumato.progress import Progress, Say, silent


@dataclass(frozen=True)
class Job:
    """The making of one point; can be pickled for another process.

    Attributes:
        budget: of the audit; None for a classifier, which is not audited.
        local: folder of the on-device baseline's bundle; None without one.
        images: number of training and of test images of the audit; None for all.
    """

    name: str
    recipe: AnyRecipe
    run: Run
    budget: Budget | None = None
    local: Path | None = None
    images: int | None = None

    @property
    def audit_folder(self) -> Path:
        """The folder of the audit."""
        assert self.budget is not None
        return self.run.folder / f"audit-{self.budget.name}{'' if self.images is None else f'-{self.images}'}"


Make = Callable[[Job], None]
"""Trains and audits a point."""
Engine = Callable[[Sequence[Job], Make, Say], dict[str, str]]
"""Makes points; returns the error of each that failed, by the point's name."""


def make(job: Job, progress: Progress = silent) -> None:
    """Train and audit a point, or what is missing of it.

    Raises:
        SfumatoError: it cannot be trained or audited, or its folder holds something else.
        Interrupted: Ctrl-C or SIGTERM; the state is kept.
    """
    recipe = job.recipe
    if training_state(job).name != "done":
        finish_training(recipe, job.run)
    if job.budget is None or known_audit(job) is not None:
        return
    assert not isinstance(recipe, ClassifierRecipe)
    bundle = Bundle.load(job.run.bundle, kind="obfuscator")
    train, test = images(recipe.data, job.images)
    path = classifier_bundle(recipe.classifier, job.run.classifier)
    classifier = load_classifier(path)
    train, test = train.of_classes(classifier.labels), test.of_classes(classifier.labels)
    found = finish_audit(
        AttackSetting(bundle_target(bundle), train, test, classifier=classifier.net, held_out_share=HELD_OUT_SHARE),
        job.budget,
        job.audit_folder,
        comparison=Comparison(
            classifier=Bundle.load(path, kind="classifier"),
            local=Bundle.load(job.local, kind="classifier") if job.local else None,
        ),
        device=fastest_device(),
        progress=progress,
    )
    record(bundle, found)


def in_turn(jobs: Sequence[Job], make: Make, say: Say) -> dict[str, str]:
    """Make one point after the other; see `Engine`.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    failed: dict[str, str] = {}
    for number, job in enumerate(jobs, 1):
        say(f"[{number}/{len(jobs)}] {job.name}, in {job.run.folder}")
        try:
            make(job)
        except Interrupted:
            raise
        except SfumatoError as error:
            failed[job.name] = str(error)
            say(f"{job.name} failed: {error}")
    return failed


def training_state(job: Job) -> State:
    """Return how far a point's training is.

    Raises:
        TrainingError: its folder holds the training of another recipe.
        BundleError: its bundle is damaged.
    """
    state = state_of(job.run)
    if state.name == "done" and recipe_of(Bundle.load(job.run.bundle)) != job.recipe:
        raise TrainingError(
            f"{job.run.folder} was trained by another recipe; sweep into another folder, or move it away to train it "
            "again"
        )
    return state


def recipe_of(bundle: Bundle) -> AnyRecipe | None:
    """Return the recipe that a bundle was trained by, what it leaves out by default; None if it is not of ours."""
    try:
        return parse_recipe(bundle.recipe.to_json())
    except RecipeError:
        return None


def known_audit(job: Job) -> AuditResult | None:
    """Read a point's audit; return None if it was not made.

    Raises:
        AuditError: it is damaged, or of another obfuscator, budget or classifier.
    """
    found, about = read_audit(job.audit_folder / "audit.json"), read_begun(job.audit_folder)
    if found is None or about is None:
        return None
    bundle, local = Bundle.load(job.run.bundle, kind="obfuscator"), None
    if job.local is not None:  # a text that no audit has, if it is not trained yet
        trained = (job.local / MANIFEST).is_file()
        local = Bundle.load(job.local, kind="classifier").classifier_identity if trained else "not trained yet"
    stated = {
        "obfuscator": found.target.fingerprint == bundle.files[OBFUSCATOR_ONNX],
        "classifier": about.classifier == bundle.classifier_identity,
        "on-device baseline": about.local == local,
        "budget": about.budget == repr(job.budget),
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
    return training_state(job).name == "done" and (job.budget is None or known_audit(job) is not None)


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
