"""A run before its first step: its files, processes and precision, the images, the classifiers and the task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.errors import RecipeError, TrainingError
from sfumato.lab.classifiers import FrozenClassifier, classifier_bundle, load_classifier
from sfumato.lab.data import ImageSet, Stream
from sfumato.lab.models.precision import Precision, choose_precision
from sfumato.lab.training.building import (
    begin_from,
    classifier_task,
    frozen_module,
    go_on_from,
    labelled_by,
    obfuscation_task,
    sketch_task,
)
from sfumato.lab.training.engine import Options
from sfumato.lab.training.images import images_of, label_free, preprocessing_of
from sfumato.lab.training.loggers import loggers_of
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.prototypes import log_probabilities_of, put_in
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, ObfuscatorRecipe, SketchRecipe
from sfumato.lab.training.recipe_parts import TrainingRecipe
from sfumato.lab.training.tasks import ClassifierTask, SketchTask
from sfumato.progress import Progress, silent

_CANDIDATES = 20_000
"""The first so many images, of which each class gets one as its photograph."""


@dataclass(frozen=True)
class Run:
    """The files of a run, all in one folder."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The state to resume from."""
        return self.folder / "checkpoint.pt"

    @property
    def classifier(self) -> Path:
        """The bundle of a classifier that is imported."""
        return self.folder / "classifier"

    @property
    def ensemble(self) -> Path:
        """Likewise, of the further classifiers, in folders by their place."""
        return self.folder / "others"

    @property
    def teachers(self) -> Path:
        """Likewise, of the teachers but a classifier's first."""
        return self.folder / "teachers"

    @property
    def teacher_views(self) -> Path:
        """The folder of the teacher's logits."""
        return self.folder / "teacher-views"

    @property
    def bundle(self) -> Path:
        """The finished bundle."""
        return self.folder / "bundle"

    def snapshot(self, epoch: int) -> Path:
        """The folder of the networks after so many epochs."""
        return self.folder / "snapshots" / f"epoch-{epoch:03d}"


@dataclass(frozen=True)
class Prepared:
    """A run before its first step; its recipe has everything decided.

    `frozen` is the classifier of an obfuscator, and the first of those that it is `trained_for`; or the first of a
    classifier's `teachers`, if it has some. The gate of a sketch is calibrated on the images `held_out`; other kinds
    have none.
    """

    recipe: AnyRecipe
    run: Run
    fabric: Fabric
    precision: Precision
    task: ClassifierTask | ObfuscationTask | SketchTask
    frozen: FrozenClassifier | None
    preprocessing: Preprocessing
    train: ImageSet | Stream
    held_out: ImageSet | None
    test: ImageSet
    trained_for: tuple[FrozenClassifier, ...] = ()
    teachers: tuple[FrozenClassifier, ...] = ()
    start: Bundle | None = None


def launch(plan: TrainingRecipe, folder: Path, options: Options) -> tuple[Fabric, Precision]:
    """Return the fabric, which decides on device and processes and has the loggers, launched, and the precision.

    Raises:
        TrainingError: there is no such device, it does not support the precision, or a logger cannot be set up.
    """
    accelerator, devices = options.accelerator, options.devices
    loggers = loggers_of(options.loggers, folder, options.say, images=options.log_images)
    try:
        precision = choose_precision(plan.precision, Fabric(accelerator=accelerator, devices=1).device)
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            precision=precision.fabric,
            loggers=loggers,
        )
        fabric.launch()  # also shares the cores out among the processes
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise TrainingError(f"cannot train on {devices} x {accelerator!r}: {str(error).splitlines()[0]}") from error
    return fabric, precision


def starting_from(start: Bundle | None, recipe: AnyRecipe) -> AnyRecipe:
    """Return the recipe with `learn` decided by whether there is a bundle to start from.

    Raises:
        RecipeError: the recipe needs such a bundle, or cannot use this one.
    """
    recipe = _with_learn(start, recipe)
    if isinstance(recipe, SketchRecipe) and recipe.learn == "decoder" and recipe.teacher_views:
        raise RecipeError("teacher_views: a decoder alone learns from a part of each batch; leave them out")
    return recipe


def _with_learn(start: Bundle | None, recipe: AnyRecipe) -> AnyRecipe:
    if start is None:
        if isinstance(recipe, SketchRecipe) and recipe.learn == "decoder":
            raise RecipeError('learn = "decoder" needs a bundle to start from: give --from')
        return recipe
    if start.recipe.quantized is not None:
        raise RecipeError(
            f"{start.path} is in 8-bit integers, which cannot be trained: start from the bundle that was quantised, "
            "and quantise the result"
        )
    if isinstance(recipe, SketchRecipe) and recipe.learn is None:
        return recipe.model_copy(update={"learn": "decoder"})
    return recipe


def prepare(
    recipe: AnyRecipe,
    run: Run,
    fabric: Fabric,
    precision: Precision,
    start: Bundle | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Load the images and the classifiers, and build the task, with fresh weights or those of a bundle to start from.

    The folder of the run gets the bundles of imported classifiers; `progress` is told of a search for photographs.

    Raises:
        SfumatoError: data, classifier or recipe cannot be used, each with its own class.
    """
    train_set, held_out, test_set = images_of(recipe, fabric)
    fabric.seed_everything(recipe.training.seed, verbose=False)
    frozen, teachers = _frozen_ones(recipe, run, fabric)
    if frozen is not None:  # its classes, in its order
        _check_labelling(recipe, frozen, test_set)
        if not test_set.labelled:  # then agreement with it is measured
            test_set = labelled_by(frozen, test_set)
            train_set = replace(train_set, names=frozen.labels)
            held_out = held_out and replace(held_out, names=frozen.labels)
        train_set, test_set = train_set.of_classes(frozen.labels), test_set.of_classes(frozen.labels)
        held_out = held_out and held_out.of_classes(frozen.labels)
        size, given = tuple(train_set.sample.images.shape[2:]), frozen.preprocessing
        if size != (takes := (given.height, given.width)):
            raise RecipeError(f"images are {size}, the classifier {frozen.name} takes {takes}; set data.size")
        if label_free(recipe):
            if isinstance(train_set, ImageSet):  # a stream has labels, which are ignored
                train_set = labelled_by(frozen, train_set)
            held_out = held_out and labelled_by(frozen, held_out)
    bfloat16 = precision.dense_bfloat16
    made = partial(Prepared, recipe, run, fabric, precision, train=train_set, held_out=held_out, test=test_set)
    if isinstance(recipe, ClassifierRecipe):
        preprocessing = preprocessing_of(recipe.data.source, train_set.sample)
        classifies = classifier_task(recipe, preprocessing, train_set.names, teachers, bfloat16=bfloat16)
        if start is not None:
            go_on_from(start, recipe, classifies, train_set.names, preprocessing)
        return made(task=classifies, frozen=frozen, preprocessing=preprocessing, teachers=teachers, start=start)
    assert frozen is not None
    task: ObfuscationTask | SketchTask
    named = enumerate(recipe.transfer.ensemble)
    further = [_frozen(name, run.ensemble / str(place), fabric) for place, name in named]
    trained_for = (frozen, *further)
    if isinstance(recipe, SketchRecipe):
        task = sketch_task(recipe, frozen, train_set.sample, further, teachers, bfloat16=bfloat16)
        if task.sketcher.photographs is not None:
            nets = [frozen_module(net) for net in trained_for]
            candidates = train_set.sample.images[:_CANDIDATES]
            scores = log_probabilities_of(candidates, nets, progress)
            put_in(task.sketcher.photographs, candidates, scores, frozen.labels)
    else:
        task = obfuscation_task(recipe, frozen, train_set.sample, further, bfloat16=bfloat16)
    if start is not None:
        begin_from(start, recipe, task, frozen)
    kept = partial(made, task=task, frozen=frozen, preprocessing=frozen.preprocessing)
    return kept(trained_for=trained_for, teachers=teachers, start=start)


def _check_labelling(recipe: AnyRecipe, frozen: FrozenClassifier, images: ImageSet) -> None:
    """Refuse what cannot be done with a multi-label classifier, or without one."""
    if frozen.labelling == "single-label":
        if images.multi_label:
            raise RecipeError(
                f"data.label_columns: the classifier {frozen.name} has one class per image; leave it out, or import it "
                "with --multi-label"
            )
        return
    if not isinstance(recipe, ObfuscatorRecipe):
        raise RecipeError(
            f'the classifier {frozen.name} is multi-label, and a recipe of kind = "{recipe.kind}" needs one class per '
            'image; use kind = "obfuscator"'
        )
    if recipe.privacy.target == "class-mean" or recipe.bottleneck.entropy_weight:
        raise RecipeError(
            f'the classifier {frozen.name} is multi-label; privacy.target = "class-mean" and bottleneck.entropy_weight '
            'need one class per image: use privacy.target = "error" and bottleneck.rate_weight'
        )
    if images.labelled and not images.multi_label:
        raise RecipeError(
            f"the classifier {frozen.name} is multi-label, but the images have one class each: name the columns of its "
            f"classes in data.label_columns ({', '.join(frozen.labels[:3])}, ...)"
        )


def _frozen_ones(
    recipe: AnyRecipe, run: Run, fabric: Fabric
) -> tuple[FrozenClassifier | None, tuple[FrozenClassifier, ...]]:
    """Return the classifier of an obfuscator, or a classifier's first teacher, and all teachers."""
    named = () if isinstance(recipe, ObfuscatorRecipe) else recipe.teachers
    own = isinstance(recipe, ClassifierRecipe)
    folders = [run.classifier if own and not place else run.teachers / str(place) for place in range(len(named))]
    teachers = tuple(_frozen(name, folder, fabric) for name, folder in zip(named, folders, strict=True))
    if not isinstance(recipe, ClassifierRecipe):
        return _frozen(recipe.classifier, run.classifier, fabric), teachers
    return next(iter(teachers), None), teachers


def _frozen(given: str, folder: Path, fabric: Fabric) -> FrozenClassifier:
    with fabric.rank_zero_first(local=True):  # the others then find the bundle that the first made
        return load_classifier(classifier_bundle(given, folder), multi_label=True)
