"""From an endpoint's address to an obfuscator: query it, learn surrogates, train for them, tune by its predictions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.artifacts.bundle import Bundle
from sfumato.errors import RecipeError, TrainingError
from sfumato.lab.data import INFERENCE_BATCH, ImageSet
from sfumato.lab.models import Sketcher
from sfumato.lab.training.blackbox.measuring import measure_at
from sfumato.lab.training.blackbox.oracle import Oracle
from sfumato.lab.training.blackbox.surrogate import Asked, learn_surrogate
from sfumato.lab.training.blackbox.tuning import tune
from sfumato.lab.training.building import frozen_module
from sfumato.lab.training.context import launch, load_both, preprocessing_of
from sfumato.lab.training.prototypes import log_probabilities_of, put_in
from sfumato.lab.training.recipe import (
    AnyRecipe,
    BlackBoxRecipe,
    ClassifierRecipe,
    ObfuscatorRecipe,
    SketchRecipe,
    TrainingRecipe,
)
from sfumato.lab.training.run import Trained, training, write_bundle
from sfumato.lab.training.setup import Run
from sfumato.lab.training.tasks import SketchTask
from sfumato.progress import Progress, Say, mute, silent, tracked

_LEAST_QUERIES = 16
_TEMPERATURE = 4.0
"""That scores are softened with; labels are not."""
_SURROGATE_RATE = 0.1
_OTHER_CLASS = 1e3
"""Subtracted from a score where the endpoint predicted another class: such an image is a last resort."""


def protect_black_box(
    recipe: AnyRecipe,
    folder: Path,
    *,
    accelerator: str = "auto",
    devices: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    token: str | None = None,
    ca_file: Path | None = None,
    progress: Progress = silent,
    say: Say = mute,
) -> Bundle:
    """Train an obfuscator for a classifier with query-only access.

    The training images are sent to the endpoint as they are, so they have to be public; their labels are ignored. All
    predictions are kept in `answers.sqlite`.

    Args:
        recipe: an obfuscator's, whose `classifier` is an address; see `BlackBoxRecipe`.
        folder: of the run; has a folder for each surrogate, and one for the obfuscator.
        accelerator: see `train`.
        devices: see `train`; surrogates learn on one.
        resume: continue an interrupted run.
        overwrite: restart, and send all queries again.
        token: the endpoint's bearer token, if it needs one.
        ca_file: PEM file with the authorities to trust instead of the system's.
        progress: is told of queries and steps.
        say: is given a line after each validation.

    Returns:
        The obfuscator's bundle, in `folder/bundle`. Its figures are about the endpoint: "accuracy_obfuscated" is the
        share of test images whose decoded image it classifies correctly (of sketches alone, which have few decoded
        images), "queries_learning", "queries_tuning", "surrogate_agreement".

    Raises:
        SfumatoError: each step's own.
    """
    recipe = _checked(recipe, folder, resume=resume, overwrite=overwrite)
    fabric, precision = launch(TrainingRecipe(seed=recipe.training.seed), folder, accelerator, 1)
    images, test = load_both(recipe.data, fabric, label_free=True)
    images = replace(images, names=test.names)
    box, preprocessing = recipe.black_box, preprocessing_of(recipe.data.source, images)
    if isinstance(recipe, SketchRecipe) and recipe.decoder == "photographs":
        box = box.model_copy(update={"tuning": 0.0})  # the predictions that were paid for already choose them
    preprocessing = replace(preprocessing, mean=box.mean or preprocessing.mean, std=box.std or preprocessing.std)
    with Oracle(
        recipe.classifier,
        box.model,
        preprocessing=preprocessing,
        classes=len(test.names),
        memory=folder / "answers.sqlite",
        queries=box.queries,
        answers=box.answers,
        rate=box.rate,
        token=token,
        ca_file=ca_file,
    ) as endpoint:
        asked = _ask(endpoint, _sample(images, _to_learn_from(box, len(images)), recipe.training.seed), progress)
        surrogates = [
            learn_surrogate(
                fabric,
                folder / "surrogates" / architecture,
                architecture,
                asked,
                preprocessing=preprocessing,
                data=recipe.data,
                plan=_surrogate_plan(box, len(asked.images), recipe.training.seed),
                temperature=_TEMPERATURE if box.answers == "scores" else 1.0,
                bfloat16=precision.dense_bfloat16,
                progress=progress,
                say=say,
            )
            for architecture in box.surrogates
        ]
        known = _for_surrogates(recipe, surrogates)
        part = Run(folder / "obfuscator")
        with training(
            known,
            part.folder,
            accelerator=accelerator,
            devices=devices,
            resume=part.checkpoint.is_file(),
            overwrite=False,
            start=None,
            progress=progress,
            say=say,
        ) as trained:
            figures = _tune(trained, endpoint, asked, Run(folder).checkpoint, progress)
            assert trained.made.frozen is not None
            fingerprint = endpoint.fingerprint or trained.made.frozen.fingerprint
            served = replace(trained.made.frozen, name=box.model, fingerprint=fingerprint)
            bundle = write_bundle(replace(trained, made=replace(trained.made, frozen=served)), folder / "bundle")
        if isinstance(known, SketchRecipe):
            figures |= measure_at(endpoint, bundle, test)
        figures |= {
            "surrogate_agreement": max(surrogate.figures.agreement or 0.0 for surrogate in surrogates),
            "queries_learning": len(asked.images),
            "queries": endpoint.spent,
        }
    about = bundle.provenance.updated(black_box={**box.model_dump(mode="json"), "figures": figures})
    return replace(bundle, figures=bundle.figures.updated(**figures), provenance=about).save()


def _checked(recipe: AnyRecipe, folder: Path, *, resume: bool, overwrite: bool) -> ObfuscatorRecipe | SketchRecipe:
    """Return the recipe, and clear the folder if it is to be overwritten."""
    if isinstance(recipe, ClassifierRecipe):
        raise RecipeError("only an obfuscator is for a classifier; this recipe trains one")
    if not recipe.black_box.model:
        raise RecipeError("black_box.model is missing: the classifier's name at the endpoint")
    if folder.exists() and any(folder.iterdir()) and not (resume or overwrite):
        raise TrainingError(f"{folder} holds a run already: --resume continues it, --overwrite restarts it")
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    return recipe


def _for_surrogates(recipe: ObfuscatorRecipe | SketchRecipe, surrogates: list[Bundle]) -> AnyRecipe:
    """Return the recipe with surrogates in place of the endpoint; a sketch learns from their predictions alone."""
    ensemble = tuple(str(surrogate.path) for surrogate in surrogates[1:])
    changes: dict[str, Any] = {
        "classifier": str(surrogates[0].path),
        "transfer": recipe.transfer.model_copy(update={"ensemble": ensemble}),
    }
    if isinstance(recipe, SketchRecipe):
        changes["teacher_weight"] = 1.0
    return recipe.model_copy(update=changes)


def _to_learn_from(box: BlackBoxRecipe, images: int) -> int:
    count = min(images, round(box.queries * (1 - box.tuning)))
    if count < _LEAST_QUERIES:
        raise RecipeError(f"{count} predictions are too few to learn from; {_LEAST_QUERIES} at least")
    return count


def _sample(images: ImageSet, count: int, seed: int) -> ImageSet:
    """Return so many images from all over the set; a larger sample of the same seed contains a smaller one."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return replace(images, images=images.images[order], labels=images.labels[order])


def _ask(endpoint: Oracle, images: ImageSet, progress: Progress) -> Asked:
    parts = tracked(torch.split(images.images, INFERENCE_BATCH), "querying the endpoint", progress)
    return Asked(images, torch.cat([endpoint(part.float() / 255) for part in parts]))


def _surrogate_plan(box: BlackBoxRecipe, count: int, seed: int) -> TrainingRecipe:
    return TrainingRecipe(
        epochs=max(1, round(box.images_seen / count)),
        batch_size=min(128, max(2, count // 4)),
        seed=seed,
        optimizer="sgd",
        learning_rate=_SURROGATE_RATE,
        weight_decay=5e-4,
        schedule="one-cycle",
        validate_every=10,
    )


def _tune(
    trained: Trained, endpoint: Oracle, asked: Asked, checkpoint: Path, progress: Progress
) -> dict[str, float | int]:
    """Fit a sketch's decoded images to the endpoint's own predictions, and return the figures of that."""
    task, made, recipe = trained.made.task, trained.made, trained.recipe
    if not isinstance(task, SketchTask) or not isinstance(recipe, SketchRecipe):
        return {}
    assert made.frozen is not None
    surrogate, sketcher = frozen_module(made.frozen), task.sketcher.cpu().eval()
    if sketcher.photographs is not None:
        images = asked.images.images
        scores = asked.predictions + log_probabilities_of(images, [surrogate], progress)  # labels are all equally sure
        predicted = torch.nn.functional.one_hot(asked.predictions.argmax(dim=1), asked.predictions.shape[1]).bool()
        scores = torch.where(predicted, scores, scores - _OTHER_CLASS)
        put_in(sketcher.photographs, images, scores, made.frozen.labels)
        return {"queries_tuning": 0}
    sketcher.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    codes, weights = distinct_codes(sketcher, made.train.sample, progress)
    box = recipe.black_box
    reserved = min(box.queries - len(asked.images), round(box.queries * box.tuning))
    budget = reserved - len(codes)  # these measure the result
    if budget < len(codes):
        return {"queries_tuning": 0}
    result = tune(
        sketcher,
        endpoint,
        surrogate,
        codes,
        weights,
        queries=budget,
        seed=recipe.training.seed,
        checkpoint=checkpoint,
        resume=checkpoint.is_file(),
        progress=progress,
    )
    return {
        "queries_tuning": result.queries,
        "agreement_before_tuning": result.agreement_before,
        "agreement_after_tuning": result.agreement_after,
    }


@torch.no_grad()
def distinct_codes(sketcher: Sketcher, images: ImageSet, progress: Progress = silent) -> tuple[Tensor, Tensor]:
    """Return the images' codes, each once, (K, classes + learned bits) float32, and the share of each, (K,)."""
    sketcher.eval()
    parts = tracked(torch.split(images.images, INFERENCE_BATCH), "encoding", progress)
    codes, counts = torch.unique(
        torch.cat([sketcher.encode(part.float() / 255)[0] for part in parts]), dim=0, return_counts=True
    )
    return codes, counts / counts.sum()
