"""From a recipe to a bundle: build everything, train, export, measure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sfumato.artifacts.bundle import DEOBFUSCATOR_WEIGHTS, OBFUSCATOR_WEIGHTS, Bundle
from sfumato.artifacts.files import exclusive, file_sha256
from sfumato.artifacts.provenance import provenance
from sfumato.artifacts.records import Provenance, RecipeRecord
from sfumato.errors import Interrupted, TrainingError
from sfumato.lab.classifiers import classifier_bundle
from sfumato.lab.data import INFERENCE_BATCH, ImageSet, Stream
from sfumato.lab.evaluation.accuracy import evaluate_classifier, evaluate_obfuscator
from sfumato.lab.evaluation.multi_label import evaluate_multi_label
from sfumato.lab.evaluation.out_of_distribution import with_ood_detector
from sfumato.lab.export.onnx import renew, save_weights
from sfumato.lab.models.checkpoint import remove_checkpoint
from sfumato.lab.models.precision import device_name
from sfumato.lab.training.building import restarted, starting_weights
from sfumato.lab.training.engine import Fitted, Hooks, Options, fit, never
from sfumato.lab.training.export import write_classifier_bundle, write_obfuscator_bundle, write_sketch_bundle
from sfumato.lab.training.loggers import ended
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, ObfuscatorRecipe, SketchRecipe, teacher_views
from sfumato.lab.training.setup import Prepared, Run, launch, prepare, starting_from
from sfumato.lab.training.tasks import ClassifierTask, SketchTask
from sfumato.lab.training.teacher_views import TeacherViews
from sfumato.progress import Progress, Say, mute, silent

CHECK_IMAGES = 64
_ADDITIONS = (
    "input",
    "utility",
    "privacy",
    "bottleneck",
    "output",
    "transfer",
    "black_box",
    "decoder",
    "min_images_per_code",
    "trunk",
    "mixup",
    "teacher_views",
)
"""Keys of a recipe that change nothing by default: a run that began before they existed may resume."""
_SKETCH_ADDITIONS = ("teacher",)
"""Likewise, of a sketch's alone."""
_DATA_ADDITIONS = ("allow_outside", "stream", "zoom", "half", "cutout", "label_columns")
"""Likewise, of its data."""
_TRAINING_ADDITIONS = ("weight_average", "small_epochs", "int8_epochs")
"""Likewise, of its training."""


def train(
    recipe: AnyRecipe,
    folder: Path,
    *,
    accelerator: str = "auto",
    devices: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    start: Bundle | None = None,
    until: Callable[[], bool] = never,
    progress: Progress = silent,
    say: Say = mute,
    loggers: Sequence[str] | None = None,
    log_images: bool = False,
) -> Bundle:
    """Train what the recipe says and write the bundle.

    Args:
        recipe: validated.
        folder: of the run; gets `checkpoint.pt`, `bundle/`, what is logged here (`tensorboard/`, `csv/`), of an
            obfuscator `lab/` with what no device needs, and `snapshots/` and `teacher-views/` if the recipe wants them.
        accelerator: as Lightning Fabric names it: "auto", "cpu", "cuda", ...
        devices: processes to train on; each takes its share of every batch.
        resume: continue from the folder's checkpoint.
        overwrite: restart although the folder has a checkpoint.
        start: the bundle to start from instead of fresh weights: an obfuscator, maybe made for another classifier, its
            trunk (a classifier with the architecture "obfuscator-trunk"), or for a classifier one like it.
        until: is asked before each step; True ends the training early, and what was learned so far is written.
        progress: is told of each step; from the first process alone, as `say`.
        say: is given the precision, and a line after each validation.
        loggers: where to log, any of "tensorboard", "csv", "mlflow" and "wandb"; None for TensorBoard.
        log_images: MLflow and Weights & Biases get images, too; TensorBoard, whose files stay here, always does.

    Raises:
        SfumatoError: data, classifier, recipe, disk or training failed, each with its own class.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """
    options = Options(accelerator, devices, resume, overwrite, progress, say, loggers, log_images)
    with training(recipe, folder, options, start, until) as (made, fitted):
        return _finish(made, fitted, options)


@contextmanager
def training(
    recipe: AnyRecipe,
    folder: Path,
    options: Options,
    start: Bundle | None = None,
    until: Callable[[], bool] = never,
) -> Iterator[tuple[Prepared, Fitted]]:
    """Train what the recipe says, and lock the folder until the block ends; see `train`."""
    run, resume, overwrite = Run(folder), options.resume, options.overwrite
    if resume and overwrite:
        raise TrainingError("--resume continues a run, --overwrite restarts it; choose one")
    recipe = starting_from(start, recipe)
    if run.checkpoint.exists() and not resume and not overwrite:
        raise TrainingError(f"{folder} holds a run already: --resume continues it, --overwrite restarts it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be created: {error.strerror or error}") from error
    fabric, precision = launch(recipe.training, folder, options)
    first = fabric.is_global_zero
    if not first:
        options = replace(options, progress=silent, say=mute)
    # The first process holds the lock for all of them.
    with exclusive(folder, TrainingError) if first else nullcontext(), ended(fabric.loggers):
        if overwrite and first:
            remove_checkpoint(run.checkpoint)
            places = run.classifier, run.ensemble, run.teachers, run.teacher_views
            for left in ("tensorboard", "csv", "snapshots", *(place.name for place in places)):
                shutil.rmtree(folder / left, ignore_errors=True)
        options.say(f"computes in {precision}")
        made = prepare(recipe, run, fabric, precision, start, options.progress)
        try:
            fitted = _fit(made, options, until)
        except Interrupted:
            if first:
                raise
            raise SystemExit(0) from None
        if not first:
            raise SystemExit(0)  # the first process writes the bundle, the others have done their share
        yield made, fitted


def _fit(made: Prepared, options: Options, until: Callable[[], bool]) -> Fitted:
    recipe, task, run, identity = made.recipe, made.task, made.run, _identity(made)
    if not any(p.requires_grad for p in task.parameters()):
        return Fitted({}, [], 0.0)  # photographs for a device that stays as it is
    hooks = Hooks(until=until)
    if isinstance(recipe, ObfuscatorRecipe) and isinstance(task, ObfuscationTask):
        hooks = Hooks(
            partial(restarted, recipe, task), partial(_keep_snapshot, recipe.snapshots_every, task, run), until
        )
    return fit(
        made.fabric,
        task,
        recipe.training,
        train=made.train,
        test=made.test,
        augmentation=recipe.data.augmentation,
        checkpoint=run.checkpoint,
        identity=identity,
        options=options,
        hooks=hooks,
        views=_views(made, identity),
    )


def _views(made: Prepared, identity: str) -> TeacherViews | None:
    """Return the fixed views that the recipe wants, or None for new ones in each epoch."""
    recipe, task, views = made.recipe, made.task, teacher_views(made.recipe)
    if not views or isinstance(task, ObfuscationTask):
        return None
    return TeacherViews(
        task.taught,
        classes=len(made.train.names),
        images=len(made.train),
        views=views,
        augmentation=recipe.data.augmentation,
        folder=made.run.teacher_views,
        identity=identity,
    )


def _identity(made: Prepared) -> str:
    identity: dict[str, object] = {
        "recipe": _identifying(made.recipe),
        "data": made.train.sha256,
        "classifier": made.frozen.identity if made.frozen else None,
    }
    if made.teachers not in ((), (made.frozen,)):
        identity["teachers"] = [net.fingerprint for net in made.teachers]
    if made.start is not None:
        identity["start"] = file_sha256(starting_weights(made.start))
    return json.dumps(identity, sort_keys=True)


def _identifying(recipe: AnyRecipe) -> Mapping[str, object]:
    """Return what must be the same for a run to resume; its speed may change in between."""
    said = recipe.model_dump(mode="json", exclude={"training": {"compile", "precision", "half_weights"}})
    if "black_box" in said and said["black_box"]["class_map"] is None:
        del said["black_box"]["class_map"]
    additions = _ADDITIONS + (_SKETCH_ADDITIONS if isinstance(recipe, SketchRecipe) else ())
    for part, table, added in (
        (recipe, said, additions),
        (recipe.data, said["data"], _DATA_ADDITIONS),
        (recipe.training, said["training"], _TRAINING_ADDITIONS),
    ):
        fields = type(part).model_fields
        for key in added:
            if key in fields and getattr(part, key) == fields[key].default:
                del table[key]
    return said


def _keep_snapshot(every: int | None, task: ObfuscationTask, run: Run, epoch: int) -> None:
    """Keep both networks as they are after this epoch, if the recipe wants that."""
    if every is None or epoch % every:
        return
    folder = run.snapshot(epoch)
    renew(folder)
    save_weights(task.obfuscator, folder / OBFUSCATOR_WEIGHTS)
    if task.deobfuscator is not None:
        save_weights(task.attackers[task.faced], folder / DEOBFUSCATOR_WEIGHTS)


def _finish(made: Prepared, fitted: Fitted, options: Options) -> Bundle:
    recipe, run, progress = made.recipe, made.run, options.progress
    try:
        progress("writing the bundle", 0, 1)
        bundle = write_bundle(made, fitted, run.bundle)
        progress("writing the bundle", 1, 1)
        if isinstance(recipe, SketchRecipe) and bundle.figures.merged_codes is not None:
            said = bundle.figures
            options.say(
                f"{said.merged_codes} of {said.occurring_codes} codes have fewer than {recipe.min_images_per_code} "
                f"training images and were merged; what is decoded has at least {said.fewest_images_per_code} behind it"
            )
        if isinstance(recipe, ClassifierRecipe):
            figures = evaluate_classifier(bundle, made.test, progress=progress).to_json()
        else:
            classifier = Bundle.load(classifier_bundle(recipe.classifier, run.classifier))
            if classifier.multi_label:
                figures = evaluate_multi_label(classifier, made.test, bundle, progress=progress)[0].to_json()
            else:
                figures = evaluate_obfuscator(bundle, classifier, made.test, progress=progress).to_json()
        if bundle.kind == "classifier" or bundle.gate is not None:
            bundle = with_ood_detector(bundle, made.test)
        return replace(bundle, figures=bundle.figures.updated(**figures)).save()
    except OSError as error:
        raise TrainingError(
            f"the bundle cannot be written to {run.bundle}: {error.strerror or error}; the training itself is kept: "
            "make room, then --resume"
        ) from error


def write_bundle(made: Prepared, fitted: Fitted, path: Path) -> Bundle:
    """Write the bundle of a training that has reached its end; the folder is created, or replaced.

    Its provenance is set, but not saved: saved provenance says that the figures are complete.
    """
    recipe, task, frozen = made.recipe, made.task, made.frozen
    images = made.test.images[:CHECK_IMAGES].float() / 255
    resolved, half = RecipeRecord.from_json(recipe.model_dump(mode="json")), recipe.training.half_weights
    if isinstance(task, ClassifierTask):
        names, size = made.train.names, made.preprocessing
        bundle = write_classifier_bundle(
            path, task, images, name=recipe.name, labels=names, preprocessing=size, recipe=resolved, half=half
        )
    elif isinstance(task, SketchTask):
        assert frozen is not None and made.held_out is not None and isinstance(recipe, SketchRecipe)
        bundle = write_sketch_bundle(
            path,
            task,
            images,
            classifier=frozen,
            recipe=resolved,
            known=made.train.sample,
            held_out=made.held_out,
            offload_rate=recipe.offload_rate,
            least=recipe.min_images_per_code,
            trained_on=_unaugmented(made.train),
            half=half,
        )
    else:
        assert frozen is not None
        bundle = write_obfuscator_bundle(path, task, images, classifier=frozen, recipe=resolved, half=half)
    return replace(bundle, provenance=_provenance(made, fitted))


def _unaugmented(images: ImageSet | Stream) -> Iterator[Tensor]:
    """Yield all training images, (B, 3, H, W) uint8; a stream is read once more."""
    if isinstance(images, ImageSet):
        return iter(torch.split(images.images, INFERENCE_BATCH))
    return (part for part, _ in images.batches(0, min(INFERENCE_BATCH, len(images))))


def _provenance(made: Prepared, fitted: Fitted) -> Provenance:
    plan, device = made.recipe.training, made.fabric.device
    origins: dict[str, object] = {}
    if made.trained_for:
        origins["trained_for"] = [{"name": net.name, "fingerprint": net.fingerprint} for net in made.trained_for]
    if made.teachers:
        origins["taught_by"] = [{"name": net.name, "fingerprint": net.fingerprint} for net in made.teachers]
    if made.start is not None:
        training = made.start.provenance.to_json()
        origins["started_from"] = {
            "sha256": file_sha256(starting_weights(made.start)),
            "training": training,
        }
    return provenance(
        seed=plan.seed,
        epochs=fitted.epochs,
        accelerator=device.type,
        precision=str(made.precision),
        device=device_name(device),
        processes=made.fabric.world_size,
        train_images=len(made.train),
        test_images=len(made.test),
        unreadable_images=made.train.unreadable + made.test.unreadable,
        data=made.train.source,
        data_sha256={"train": made.train.sha256, "test": made.test.sha256},
        streamed=isinstance(made.train, Stream),
        training_seconds=round(fitted.seconds, 1),
        history=[{name: round(value, 5) for name, value in figures.items()} for figures in fitted.history],
        **origins,
    )
