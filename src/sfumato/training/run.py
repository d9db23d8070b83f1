"""From a recipe to a bundle: builds everything, trains, exports, measures."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor, nn

from sfumato.bundle import DEOBFUSCATOR_WEIGHTS, OBFUSCATOR_WEIGHTS, Bundle, Preprocessing
from sfumato.classifiers import FrozenClassifier, classifier_bundle, load_classifier
from sfumato.data import ImageSet
from sfumato.errors import Interrupted, RecipeError, TrainingError
from sfumato.evaluation import evaluate_classifier, evaluate_obfuscator
from sfumato.export import renew, save_weights
from sfumato.nets import build_classifier
from sfumato.provenance import device_name, provenance
from sfumato.training.building import (
    answered,
    begin_from,
    check_fit,
    normalize,
    obfuscation_task,
    restarted,
    sketch_task,
)
from sfumato.training.engine import fit
from sfumato.training.export import write_classifier_bundle, write_obfuscator_bundle, write_sketch_bundle
from sfumato.training.optimizer import optimizer_of
from sfumato.training.recipe import (
    AnyRecipe,
    ClassifierRecipe,
    ObfuscatorRecipe,
    SketchRecipe,
)
from sfumato.training.setting import augmentation_of, launch, load_both, preprocessing_of, schedule_of
from sfumato.training.tasks import ClassifierTask, ObfuscationTask, SketchTask, Utility

log = logging.getLogger(__name__)

CHECK_PICTURES = 64
_ADDITIONS = ("input", "utility", "privacy", "bottleneck", "output", "transfer", "black_box")
"""Tables of a recipe that say nothing by default: a run that began without them may go on."""
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


def train(
    recipe: AnyRecipe,
    folder: Path,
    *,
    accelerator: str = "auto",
    devices: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    start: Bundle | None = None,
) -> Bundle:
    """Trains what the recipe says and writes the bundle.

    Args:
        recipe: validated.
        folder: of the run; gets `checkpoint.pt`, `tensorboard/`, `bundle/`, and `snapshots/` if the recipe wants them.
        accelerator: as Lightning Fabric names it: "auto", "cpu", "cuda", ...
        devices: processes to train on; each takes its share of every batch.
        resume: go on from the folder's checkpoint.
        overwrite: start anew although the folder has a checkpoint.
        start: the bundle of an obfuscator to begin with, made for another classifier maybe, instead of fresh weights.

    Raises:
        SfumatoError: data, classifier, recipe, disk or training failed, each with its own class.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """
    run = Run(folder)
    if resume and overwrite:
        raise TrainingError("--resume goes on with a run, --overwrite starts anew; choose one")
    recipe = _starting_from(start, recipe)
    if run.checkpoint.exists() and not resume and not overwrite:
        raise TrainingError(f"{folder} holds a run already: --resume goes on with it, --overwrite starts anew")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be created: {error.strerror or error}") from error
    fabric = launch(recipe.training, folder, accelerator, devices)
    if overwrite and fabric.is_global_zero:
        run.checkpoint.unlink(missing_ok=True)
        for left in ("tensorboard", "snapshots", run.classifier.name, run.others.name):
            shutil.rmtree(folder / left, ignore_errors=True)
    train_set, test_set = load_both(recipe.data, fabric, label_free=_label_free(recipe))
    held_out: ImageSet | None = None
    if isinstance(recipe, SketchRecipe):
        train_set, held_out = train_set.split(recipe.held_out_pictures)
    fabric.seed_everything(recipe.training.seed, verbose=False)
    given = recipe.teacher if isinstance(recipe, ClassifierRecipe) else recipe.classifier
    frozen = None if given is None else _frozen(given, run.classifier, fabric)
    known: dict[str, Any] = {}  # of what it is made from and for
    if frozen is not None:  # its classes, in its order
        train_set, test_set = train_set.of_classes(frozen.labels), test_set.of_classes(frozen.labels)
        held_out = held_out and held_out.of_classes(frozen.labels)
    if isinstance(recipe, ClassifierRecipe):
        preprocessing = preprocessing_of(recipe.data.source, train_set)
        task: Task = _classifier_task(recipe, frozen, preprocessing, train_set)
    else:
        assert frozen is not None
        if _label_free(recipe):
            train_set = answered(train_set, frozen)
            held_out = held_out and answered(held_out, frozen)
        others = [_frozen(also, run.others / str(place), fabric) for place, also in enumerate(recipe.transfer.also)]
        if isinstance(recipe, SketchRecipe):
            task = sketch_task(recipe, frozen, train_set, others)
        else:
            task = obfuscation_task(recipe, frozen, train_set, others)
        known["trained_for"] = [{"name": net.name, "fingerprint": net.fingerprint} for net in (frozen, *others)]
        if start is not None:
            begin_from(start, recipe, task, frozen)
            known["started_from"] = {"sha256": start.files[OBFUSCATOR_WEIGHTS], "training": start.provenance}
        preprocessing = frozen.preprocessing
    identity = {
        "recipe": _identifying(recipe),
        "data": train_set.sha256,
        "classifier": frozen.fingerprint if frozen else None,
    }
    if start is not None:
        identity["start"] = start.files[OBFUSCATOR_WEIGHTS]
    try:
        figures = _fit(fabric, recipe, task, train_set, test_set, run, resume, json.dumps(identity, sort_keys=True))
    except Interrupted:
        if fabric.is_global_zero:
            raise
        raise SystemExit(0) from None
    if not fabric.is_global_zero:
        raise SystemExit(0)  # the first process writes the bundle, the others have done their share
    try:
        return _finish(recipe, task, frozen, preprocessing, train_set, held_out, test_set, run, fabric, figures, known)
    except OSError as error:
        raise TrainingError(
            f"the bundle cannot be written to {run.bundle}: {error.strerror or error}; the training itself is kept: "
            "make room, then --resume"
        ) from error


def _fit(
    fabric: Fabric,
    recipe: AnyRecipe,
    task: nn.Module,
    train_set: ImageSet,
    test_set: ImageSet,
    run: Run,
    resume: bool,
    identity: str,
) -> dict[str, float]:
    plan = recipe.training
    optimizer, scheduler = optimizer_of(plan, task, steps=len(train_set) // plan.batch_size)
    return fit(
        fabric,
        task,
        optimizer,
        scheduler,
        train=train_set,
        test=test_set,
        augmentation=augmentation_of(recipe.data),
        schedule=schedule_of(plan),
        checkpoint=run.checkpoint,
        identity=identity,
        resume=resume,
        panel=task.panel if isinstance(task, ObfuscationTask | SketchTask) else None,
        before_epoch=partial(_restart, recipe, task),
        after_epoch=partial(_keep_snapshot, recipe, task, run),
    )


def _label_free(recipe: AnyRecipe) -> bool:
    """Whether the labels of the training pictures are not looked at."""
    if isinstance(recipe, SketchRecipe):
        return recipe.teacher_weight == 1
    if not isinstance(recipe, ObfuscatorRecipe):
        return False
    return not Utility(recipe.utility.teacher_weight, recipe.utility.feature_weight).label_weight


def _identifying(recipe: AnyRecipe) -> dict[str, Any]:
    """What must be the same for a run to go on; how fast it runs may change between two parts of it."""
    said = recipe.model_dump(mode="json", exclude={"training": {"compile"}})
    fields = type(recipe).model_fields
    silent = [key for key in _ADDITIONS if key in fields and getattr(recipe, key) == fields[key].default]
    return {key: value for key, value in said.items() if key not in silent}


def _restart(recipe: AnyRecipe, task: nn.Module, epoch: int) -> list[nn.Parameter]:
    if isinstance(recipe, ObfuscatorRecipe) and isinstance(task, ObfuscationTask):
        return restarted(recipe, task, epoch)
    return []


def _keep_snapshot(recipe: AnyRecipe, task: nn.Module, run: Run, epoch: int) -> None:
    """Keeps both networks as they are after this epoch, if the recipe wants that."""
    if not isinstance(recipe, ObfuscatorRecipe) or not isinstance(task, ObfuscationTask):
        return
    if recipe.snapshots_every is None or epoch % recipe.snapshots_every:
        return
    folder = run.snapshot(epoch)
    renew(folder)
    save_weights(task.obfuscator, folder / OBFUSCATOR_WEIGHTS)
    if task.deobfuscator is not None:
        save_weights(task.attackers[task.faced], folder / DEOBFUSCATOR_WEIGHTS)


def _finish(
    recipe: AnyRecipe,
    task: Task,
    frozen: FrozenClassifier | None,
    preprocessing: Preprocessing,
    train_set: ImageSet,
    held_out: ImageSet | None,
    test_set: ImageSet,
    run: Run,
    fabric: Fabric,
    figures: dict[str, float],
    known: dict[str, Any],
) -> Bundle:
    pictures: Tensor = test_set.images[:CHECK_PICTURES].float() / 255
    plain_recipe = recipe.model_dump(mode="json")
    if isinstance(task, ClassifierTask):
        bundle = write_classifier_bundle(
            run.bundle,
            task,
            pictures,
            name=recipe.name,
            labels=train_set.names,
            preprocessing=preprocessing,
            recipe=plain_recipe,
        )
        bundle.figures.update(evaluate_classifier(bundle, test_set))
    else:
        assert frozen is not None and not isinstance(recipe, ClassifierRecipe)
        if isinstance(task, SketchTask):
            assert held_out is not None and isinstance(recipe, SketchRecipe)
            bundle = write_sketch_bundle(
                run.bundle,
                task,
                pictures,
                classifier=frozen,
                recipe=plain_recipe,
                known=train_set,
                held_out=held_out,
                offload_rate=recipe.offload_rate,
            )
        else:
            bundle = write_obfuscator_bundle(run.bundle, task, pictures, classifier=frozen, recipe=plain_recipe)
        bundle.figures.update(
            evaluate_obfuscator(bundle, Bundle.load(classifier_bundle(recipe.classifier, run.classifier)), test_set)
        )
    bundle.provenance.update(
        provenance(
            seed=recipe.training.seed,
            epochs=recipe.training.epochs,
            accelerator=fabric.device.type,
            device=device_name(fabric.device),
            processes=fabric.world_size,
            train_pictures=len(train_set),
            test_pictures=len(test_set),
            unreadable_pictures=train_set.unreadable + test_set.unreadable,
            data=train_set.source,
            data_sha256={"train": train_set.sha256, "test": test_set.sha256},
            training_seconds=round(figures.pop("seconds"), 1),
            **known,
        )
    )
    bundle.save()
    return bundle


def _frozen(given: str, folder: Path, fabric: Fabric) -> FrozenClassifier:
    with fabric.rank_zero_first(local=True):  # the others then find the bundle that the first made
        return load_classifier(classifier_bundle(given, folder))


def _starting_from(start: Bundle | None, recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with what it leaves open decided by whether there is something to begin with."""
    if isinstance(recipe, ClassifierRecipe):
        if start is not None:
            raise RecipeError("a classifier's training starts from nothing; --from takes the bundle of an obfuscator")
        return recipe
    if isinstance(recipe, SketchRecipe):
        if recipe.learn == "drawing" and start is None:
            raise RecipeError('learn = "drawing" needs a bundle to start from: give --from')
        return recipe.model_copy(update={"learn": recipe.learn or ("all" if start is None else "drawing")})
    return recipe


def _classifier_task(
    recipe: ClassifierRecipe, teacher: FrozenClassifier | None, preprocessing: Preprocessing, images: ImageSet
) -> ClassifierTask:
    if teacher is not None:
        check_fit(teacher, images)
    return ClassifierTask(
        build_classifier(recipe.architecture, len(images.names)),
        normalize(preprocessing),
        label_smoothing=recipe.label_smoothing,
        teacher=None if teacher is None else nn.Sequential(normalize(teacher.preprocessing), teacher.net),
        teacher_weight=recipe.teacher_weight,
        temperature=recipe.temperature,
    )
