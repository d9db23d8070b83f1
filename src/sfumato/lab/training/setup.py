"""What a run needs before its first step: the images, the classifiers, and what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from torch import nn

from sfumato.artifacts.bundle import OBFUSCATOR_WEIGHTS, Bundle, Preprocessing
from sfumato.errors import RecipeError
from sfumato.lab.classifiers import FrozenClassifier, classifier_bundle, load_classifier
from sfumato.lab.data import ImageSet, Stream
from sfumato.lab.models import build_classifier, fold_norms
from sfumato.lab.training.building import answered, begin_from, check_fit, normalize, obfuscation_task, sketch_task
from sfumato.lab.training.context import preprocessing_of
from sfumato.lab.training.images import label_free, load_images
from sfumato.lab.training.prototypes import choose
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, SketchRecipe
from sfumato.lab.training.tasks import ClassifierTask, ObfuscationTask, SketchTask

Task = ClassifierTask | ObfuscationTask | SketchTask


@dataclass(frozen=True)
class Run:
    """Where a run's files lie.

    Attributes:
        folder: of everything.
    """

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The state to resume from."""
        return self.folder / "checkpoint.pt"

    @property
    def classifier(self) -> Path:
        """The bundle of the classifier, where the recipe names one that is no bundle."""
        return self.folder / "classifier"

    @property
    def others(self) -> Path:
        """Likewise, of the further classifiers, in folders by their place."""
        return self.folder / "others"

    @property
    def bundle(self) -> Path:
        """The finished bundle."""
        return self.folder / "bundle"

    def snapshot(self, epoch: int) -> Path:
        """The folder of the networks as they were after so many epochs."""
        return self.folder / "snapshots" / f"epoch-{epoch:03d}"


@dataclass(frozen=True)
class Prepared:
    """What a run trains, with what.

    Attributes:
        task: before its first step.
        frozen: the classifier or teacher; None if there is none.
        preprocessing: how an image becomes the classifier's input.
        train: the images to train on.
        held_out: those that a sketch's gate is chosen with; None for other kinds.
        test: the images to test on.
        origins: what the result is made from and for, for its provenance.
    """

    task: Task
    frozen: FrozenClassifier | None
    preprocessing: Preprocessing
    train: ImageSet | Stream
    held_out: ImageSet | None
    test: ImageSet
    origins: dict[str, Any]


def starting_from(start: Bundle | None, recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with what it leaves open decided by whether there is something to begin with.

    Raises:
        RecipeError: what the recipe says needs something to begin with, or cannot do with it.
    """
    if isinstance(recipe, ClassifierRecipe):
        if start is not None:
            raise RecipeError("a classifier's training starts from nothing; --from takes the bundle of an obfuscator")
        return recipe
    if start is not None and start.recipe.quantized is not None:
        raise RecipeError(
            f"{start.path} is in 8-bit integers, which cannot be trained: start from the bundle that it was made of, "
            "and quantise what comes out"
        )
    if isinstance(recipe, SketchRecipe):
        if recipe.learn == "drawing" and start is None:
            raise RecipeError('learn = "drawing" needs a bundle to start from: give --from')
        if start is not None and recipe.learn is None:
            return recipe.model_copy(update={"learn": "drawing"})
    return recipe


def prepare(
    recipe: AnyRecipe, run: Run, fabric: Fabric, start: Bundle | None = None, *, bfloat16: bool = False
) -> Prepared:
    """Loads the images and the classifiers, and builds what is trained.

    Args:
        recipe: validated.
        run: its folder gets the bundles of classifiers that are none yet.
        fabric: launched.
        start: the bundle of an obfuscator to begin with, instead of fresh weights.
        bfloat16: see `Precision.dense_bfloat16`.

    Raises:
        SfumatoError: data, classifier or recipe cannot be used, each with its own class.
    """
    train_set, held_out, test_set = load_images(recipe, fabric)
    fabric.seed_everything(recipe.training.seed, verbose=False)
    given = recipe.teacher if isinstance(recipe, ClassifierRecipe) else recipe.classifier
    frozen = None if given is None else _frozen(given, run.classifier, fabric)
    origins: dict[str, Any] = {}
    if frozen is not None:  # its classes, in its order
        train_set, test_set = train_set.of_classes(frozen.labels), test_set.of_classes(frozen.labels)
        held_out = held_out and held_out.of_classes(frozen.labels)
    if isinstance(recipe, ClassifierRecipe):
        preprocessing = preprocessing_of(recipe.data.source, train_set.sample)
        task: Task = _classifier_task(recipe, frozen, preprocessing, train_set.sample, bfloat16=bfloat16)
    else:
        assert frozen is not None
        if label_free(recipe):
            if isinstance(train_set, ImageSet):  # a stream has labels; nobody looks at them
                train_set = answered(train_set, frozen)
            held_out = held_out and answered(held_out, frozen)
        others = [_frozen(also, run.others / str(place), fabric) for place, also in enumerate(recipe.transfer.also)]
        if isinstance(recipe, SketchRecipe):
            task = sketch_task(recipe, frozen, train_set.sample, others, bfloat16=bfloat16)
            if task.sketcher.photographs is not None:
                nets = [nn.Sequential(normalize(net.preprocessing), net.net.eval()) for net in (frozen, *others)]
                choose(task.sketcher.photographs, train_set.sample.images, nets, frozen.labels)
        else:
            task = obfuscation_task(recipe, frozen, train_set.sample, others, bfloat16=bfloat16)
        origins["trained_for"] = [{"name": net.name, "fingerprint": net.fingerprint} for net in (frozen, *others)]
        if start is not None:
            begin_from(start, recipe, task, frozen)
            origins["started_from"] = {
                "sha256": start.files[OBFUSCATOR_WEIGHTS],
                "training": start.provenance.to_json(),
            }
        preprocessing = frozen.preprocessing
    return Prepared(task, frozen, preprocessing, train_set, held_out, test_set, origins)


def _frozen(given: str, folder: Path, fabric: Fabric) -> FrozenClassifier:
    with fabric.rank_zero_first(local=True):  # the others then find the bundle that the first made
        return load_classifier(classifier_bundle(given, folder))


def _classifier_task(
    recipe: ClassifierRecipe,
    teacher: FrozenClassifier | None,
    preprocessing: Preprocessing,
    images: ImageSet,
    *,
    bfloat16: bool,
) -> ClassifierTask:
    if teacher is not None:
        check_fit(teacher, images)
    return ClassifierTask(
        build_classifier(recipe.architecture, len(images.names)),
        normalize(preprocessing),
        label_smoothing=recipe.label_smoothing,
        teacher=None if teacher is None else nn.Sequential(normalize(teacher.preprocessing), fold_norms(teacher.net)),
        teacher_weight=recipe.teacher_weight,
        temperature=recipe.temperature,
        bfloat16=bfloat16,
    )
