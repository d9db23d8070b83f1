"""From a recipe to a bundle: builds everything, trains, exports, measures."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor, nn

from sfumato.artifacts.bundle import DEOBFUSCATOR_WEIGHTS, OBFUSCATOR_WEIGHTS, Bundle
from sfumato.artifacts.provenance import provenance
from sfumato.errors import Interrupted, TrainingError
from sfumato.lab.classifiers import classifier_bundle
from sfumato.lab.data import Stream
from sfumato.lab.evaluation.accuracy import evaluate_classifier, evaluate_obfuscator
from sfumato.lab.export.onnx import renew, save_weights
from sfumato.lab.models.checkpoint import exclusive
from sfumato.lab.models.precision import Precision, device_name
from sfumato.lab.training.building import restarted
from sfumato.lab.training.context import augmentation_of, launch, schedule_of
from sfumato.lab.training.engine import Fitted, fit
from sfumato.lab.training.export import write_classifier_bundle, write_obfuscator_bundle, write_sketch_bundle
from sfumato.lab.training.optimizer import optimizer_of
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, DataRecipe, ObfuscatorRecipe, SketchRecipe
from sfumato.lab.training.setup import Prepared, Run, prepare, starting_from
from sfumato.lab.training.tasks import ClassifierTask, ObfuscationTask, SketchTask

log = logging.getLogger(__name__)

CHECK_IMAGES = 64
_ADDITIONS = ("input", "utility", "privacy", "bottleneck", "output", "transfer", "black_box", "drawing")
"""Tables of a recipe that say nothing by default: a run that began without them may go on."""
_DATA_ADDITIONS = ("stream", "zoom")
"""Likewise, of its data."""


def train(
    recipe: AnyRecipe,
    folder: Path,
    *,
    accelerator: str = "auto",
    devices: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    start: Bundle | None = None,
    say: Callable[[str], None] = lambda line: None,
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
        say: is told a line for people.

    Raises:
        SfumatoError: data, classifier, recipe, disk or training failed, each with its own class.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """
    run = Run(folder)
    if resume and overwrite:
        raise TrainingError("--resume goes on with a run, --overwrite starts anew; choose one")
    recipe = starting_from(start, recipe)
    if run.checkpoint.exists() and not resume and not overwrite:
        raise TrainingError(f"{folder} holds a run already: --resume goes on with it, --overwrite starts anew")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be created: {error.strerror or error}") from error
    fabric, precision = launch(recipe.training, folder, accelerator, devices)
    # The first process holds it for all of them.
    with exclusive(folder) if fabric.is_global_zero else nullcontext():
        return _train(recipe, run, fabric, precision, resume=resume, overwrite=overwrite, start=start, say=say)


def _train(
    recipe: AnyRecipe,
    run: Run,
    fabric: Fabric,
    precision: Precision,
    *,
    resume: bool,
    overwrite: bool,
    start: Bundle | None,
    say: Callable[[str], None],
) -> Bundle:
    if overwrite and fabric.is_global_zero:
        run.checkpoint.unlink(missing_ok=True)
        for left in ("tensorboard", "snapshots", run.classifier.name, run.others.name):
            shutil.rmtree(run.folder / left, ignore_errors=True)
    if fabric.is_global_zero:
        say(f"computes in {precision}")
    made = prepare(recipe, run, fabric, start, bfloat16=precision.dense_bfloat16)
    identity = {
        "recipe": _identifying(recipe),
        "data": made.train.sha256,
        "classifier": made.frozen.fingerprint if made.frozen else None,
    }
    if start is not None:
        identity["start"] = start.files[OBFUSCATOR_WEIGHTS]
    try:
        fitted = _fit(fabric, recipe, made, run, resume, json.dumps(identity, sort_keys=True))
    except Interrupted:
        if fabric.is_global_zero:
            raise
        raise SystemExit(0) from None
    if not fabric.is_global_zero:
        raise SystemExit(0)  # the first process writes the bundle, the others have done their share
    try:
        return _finish(recipe, made, run, fabric, fitted, precision=str(precision))
    except OSError as error:
        raise TrainingError(
            f"the bundle cannot be written to {run.bundle}: {error.strerror or error}; the training itself is kept: "
            "make room, then --resume"
        ) from error


def _fit(fabric: Fabric, recipe: AnyRecipe, made: Prepared, run: Run, resume: bool, identity: str) -> Fitted:
    plan, task = recipe.training, made.task
    if not any(p.requires_grad for p in task.parameters()):
        return Fitted({}, [], 0.0)  # photographs for a device that stays as it is
    optimizer, scheduler = optimizer_of(plan, task, steps=len(made.train) // plan.batch_size)
    return fit(
        fabric,
        task,
        optimizer,
        scheduler,
        train=made.train,
        test=made.test,
        augmentation=augmentation_of(recipe.data),
        schedule=schedule_of(plan),
        checkpoint=run.checkpoint,
        identity=identity,
        resume=resume,
        panel=task.panel if isinstance(task, ObfuscationTask | SketchTask) else None,
        before_epoch=partial(_restart, recipe, task),
        after_epoch=partial(_keep_snapshot, recipe, task, run),
    )


def _identifying(recipe: AnyRecipe) -> dict[str, Any]:
    """What must be the same for a run to go on; how fast it runs may change between two parts of it."""
    said = recipe.model_dump(mode="json", exclude={"training": {"compile", "precision", "half_weights"}})
    for key in _DATA_ADDITIONS:
        if getattr(recipe.data, key) == DataRecipe.model_fields[key].default:
            del said["data"][key]
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


def _finish(recipe: AnyRecipe, made: Prepared, run: Run, fabric: Fabric, fitted: Fitted, *, precision: str) -> Bundle:
    task, frozen, train_set, test_set = made.task, made.frozen, made.train, made.test
    images: Tensor = test_set.images[:CHECK_IMAGES].float() / 255
    plain_recipe, half = recipe.model_dump(mode="json"), recipe.training.half_weights
    if isinstance(task, ClassifierTask):
        bundle = write_classifier_bundle(
            run.bundle,
            task,
            images,
            name=recipe.name,
            labels=train_set.names,
            preprocessing=made.preprocessing,
            recipe=plain_recipe,
            half=half,
        )
        bundle.figures.update(evaluate_classifier(bundle, test_set).to_json())
    else:
        assert frozen is not None and not isinstance(recipe, ClassifierRecipe)
        if isinstance(task, SketchTask):
            assert made.held_out is not None and isinstance(recipe, SketchRecipe)
            bundle = write_sketch_bundle(
                run.bundle,
                task,
                images,
                classifier=frozen,
                recipe=plain_recipe,
                known=train_set.sample,
                held_out=made.held_out,
                offload_rate=recipe.offload_rate,
                half=half,
            )
        else:
            bundle = write_obfuscator_bundle(
                run.bundle, task, images, classifier=frozen, recipe=plain_recipe, half=half
            )
        served = Bundle.load(classifier_bundle(recipe.classifier, run.classifier))
        bundle.figures.update(evaluate_obfuscator(bundle, served, test_set).to_json())
    bundle.provenance.update(
        provenance(
            seed=recipe.training.seed,
            epochs=recipe.training.epochs if fitted.seconds else 0,
            accelerator=fabric.device.type,
            precision=precision,
            device=device_name(fabric.device),
            processes=fabric.world_size,
            train_images=len(train_set),
            test_images=len(test_set),
            unreadable_images=train_set.unreadable + test_set.unreadable,
            data=train_set.source,
            data_sha256={"train": train_set.sha256, "test": test_set.sha256},
            streamed=isinstance(train_set, Stream),
            training_seconds=round(fitted.seconds, 1),
            history=[{name: round(value, 5) for name, value in look.items()} for look in fitted.history],
            **made.origins,
        ),
    ).save()
