"""From an endpoint's address to an obfuscator: query it, learn surrogates, train for them, tune by its predictions."""

from __future__ import annotations

import shutil
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import one_hot

from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import Array, OnnxFunction
from sfumato.device.predictions import softmax
from sfumato.errors import QueryBudgetExhausted, RecipeError, TrainingError
from sfumato.lab.classifiers import read_class_map
from sfumato.lab.data import INFERENCE_BATCH, ImageSet
from sfumato.lab.evaluation.accuracy import device_logits
from sfumato.lab.evaluation.out_of_distribution import with_ood_detector
from sfumato.lab.training.blackbox.oracle import Oracle
from sfumato.lab.training.blackbox.surrogate import Asked, learn_surrogate
from sfumato.lab.training.blackbox.tuning import tune
from sfumato.lab.training.building import frozen_module
from sfumato.lab.training.engine import Options
from sfumato.lab.training.images import load_both, preprocessing_of
from sfumato.lab.training.loggers import ended
from sfumato.lab.training.prototypes import log_probabilities_of, put_in
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, ObfuscatorRecipe, SketchRecipe
from sfumato.lab.training.recipe_parts import BlackBoxRecipe, TrainingRecipe
from sfumato.lab.training.run import training, write_bundle
from sfumato.lab.training.setup import Prepared, Run, launch
from sfumato.lab.training.tasks import SketchTask
from sfumato.progress import Progress, tracked

_LEAST_QUERIES = 16
_OTHER_CLASS = 1e3
"""Subtracted from a score where the endpoint predicted another class: such an image is a last resort."""
_Figures = dict[str, float | int]


def protect_black_box(
    recipe: AnyRecipe,
    folder: Path,
    options: Options,
    *,
    token: str | None = None,
    ca_file: Path | None = None,
) -> Bundle:
    """Train an obfuscator for a classifier with query-only access.

    The training images are sent to the endpoint as they are, so they have to be public; their labels are ignored. All
    predictions are kept in `answers.sqlite`.

    Args:
        recipe: an obfuscator's, whose `classifier` is an address; see `BlackBoxRecipe`.
        folder: of the run; has a folder for each surrogate, and one for the obfuscator.
        options: as `train` takes them; surrogates learn on one device. To overwrite is to send all queries again.
        token: the endpoint's bearer token, if it needs one.
        ca_file: PEM file with the authorities to trust instead of the system's.

    Returns:
        The obfuscator's bundle, in `folder/bundle`. Its figures are about the endpoint: "accuracy_obfuscated" is the
        share of test images whose decoded image it classifies correctly (of sketches alone, which have few decoded
        images), "queries_learning", "queries_tuning", "surrogate_agreement".

    Raises:
        SfumatoError: each step's own.
    """
    recipe = _checked(recipe, folder, options)
    fabric, precision = launch(TrainingRecipe(seed=recipe.training.seed), folder, replace(options, devices=1))
    images, test = load_both(recipe.data, fabric, label_free=True)
    box, found = recipe.black_box, preprocessing_of(recipe.data.source, images)
    preprocessing = replace(found, mean=box.mean or found.mean, std=box.std or found.std)
    classes = None if box.class_map is None else read_class_map(Path(box.class_map))
    if classes is not None:
        images, test = (part.of_classes(tuple(classes)) for part in (images, test))
    if isinstance(recipe, SketchRecipe) and recipe.decoder == "photographs":
        box = box.model_copy(update={"tuning": 0.0})  # the predictions that were paid for already choose them
    with Oracle(
        recipe.classifier,
        box,
        preprocessing=preprocessing,
        classes=len(test.names),
        memory=folder / "answers.sqlite",
        token=token,
        ca_file=ca_file,
        class_map=classes,
    ) as endpoint:
        asked = _ask(endpoint, box, images, recipe.training.seed, options.progress)
        learn = partial(learn_surrogate, fabric, asked, recipe, options, bfloat16=precision.dense_bfloat16)
        with ended(fabric.loggers):
            surrogates = [learn(name, folder / "surrogates" / name) for name in box.surrogates]
        bundle, figures = _protected(_for_surrogates(recipe, surrogates), endpoint, asked, Run(folder), options)
        if isinstance(recipe, SketchRecipe):
            figures |= measure_at(endpoint, bundle, test)
            bundle = with_ood_detector(bundle, test)
        figures |= {
            "surrogate_agreement": max(surrogate.figures.agreement or 0.0 for surrogate in surrogates),
            "queries_learning": len(asked.images),
            "queries": endpoint.spent,
        }
    about = bundle.provenance.updated(black_box={**box.model_dump(mode="json"), "figures": figures})
    return replace(bundle, figures=bundle.figures.updated(**figures), provenance=about).save()


def _checked(recipe: AnyRecipe, folder: Path, options: Options) -> ObfuscatorRecipe | SketchRecipe:
    """Return the recipe, and clear the folder if it is to be overwritten."""
    if isinstance(recipe, ClassifierRecipe):
        raise RecipeError("only an obfuscator is for a classifier; this recipe trains one")
    if recipe.data.label_columns:
        raise RecipeError(
            "data.label_columns: with query-only access a classifier has one class per image; leave it out"
        )
    if not recipe.black_box.model:
        raise RecipeError("black_box.model is missing: the classifier's name at the endpoint")
    if folder.exists() and any(folder.iterdir()) and not (options.resume or options.overwrite):
        raise TrainingError(f"{folder} holds a run already: --resume continues it, --overwrite restarts it")
    if options.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    return recipe


def _ask(endpoint: Oracle, box: BlackBoxRecipe, images: ImageSet, seed: int, progress: Progress) -> Asked:
    """Query the endpoint with images from all over the set; a larger sample of a seed contains a smaller one."""
    count = min(len(images), round(box.queries * (1 - box.tuning)))
    if count < _LEAST_QUERIES:
        raise RecipeError(f"{count} predictions are too few to learn from; {_LEAST_QUERIES} at least")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    images = replace(images, images=images.images[order], labels=images.labels[order])
    parts = tracked(torch.split(images.images, INFERENCE_BATCH), "querying the endpoint", progress)
    return Asked(images, torch.cat([endpoint(part.float() / 255) for part in parts]), endpoint.preprocessing)


def _for_surrogates(recipe: ObfuscatorRecipe | SketchRecipe, surrogates: list[Bundle]) -> AnyRecipe:
    """Return the recipe with surrogates in place of the endpoint; a sketch learns from their predictions alone."""
    first, *further = (str(surrogate.path) for surrogate in surrogates)
    transfer = recipe.transfer.model_copy(update={"ensemble": tuple(further)})
    changes: dict[str, object] = {"classifier": first, "transfer": transfer}
    if isinstance(recipe, SketchRecipe):
        changes["teacher_weight"] = 1.0
    return recipe.model_copy(update=changes)


def _protected(
    recipe: AnyRecipe, endpoint: Oracle, asked: Asked, run: Run, options: Options
) -> tuple[Bundle, _Figures]:
    """Train for the surrogates, and write the bundle for the endpoint."""
    part = Run(run.folder / "obfuscator")
    options = replace(options, resume=part.checkpoint.is_file(), overwrite=False)
    with training(recipe, part.folder, options) as (made, fitted):
        figures = _tune(made, endpoint, asked, run.checkpoint, options.progress)
        assert made.frozen is not None
        fingerprint = endpoint.fingerprint or made.frozen.fingerprint
        served = replace(made.frozen, name=endpoint.model, fingerprint=fingerprint, class_map=endpoint.class_map)
        return write_bundle(replace(made, frozen=served), fitted, run.bundle), figures


def _tune(made: Prepared, endpoint: Oracle, asked: Asked, checkpoint: Path, progress: Progress) -> _Figures:
    """Fit a sketch's decoded images to the endpoint's own predictions, and return the figures of that."""
    task, recipe = made.task, made.recipe
    if not isinstance(task, SketchTask) or not isinstance(recipe, SketchRecipe):
        return {}
    assert made.frozen is not None
    surrogate, sketcher = frozen_module(made.frozen), task.sketcher.cpu().eval()
    if sketcher.photographs is not None:
        images = asked.images.images
        scores = asked.predictions + log_probabilities_of(images, [surrogate], progress)  # labels are all equally sure
        predicted = one_hot(asked.predictions.argmax(dim=1), asked.predictions.shape[1]).bool()
        scores = torch.where(predicted, scores, scores - _OTHER_CLASS)
        put_in(sketcher.photographs, images, scores, made.frozen.labels)
        return {"queries_tuning": 0}
    sketcher.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    parts = tracked(torch.split(made.train.sample.images, INFERENCE_BATCH), "encoding", progress)
    with torch.no_grad():
        encoded = torch.cat([sketcher.encode(part.float() / 255)[0] for part in parts])
    codes, counts = torch.unique(encoded, dim=0, return_counts=True)
    box = recipe.black_box
    reserved = min(box.queries - len(asked.images), round(box.queries * box.tuning))
    budget = reserved - len(codes)  # these measure the result
    if budget < len(codes):
        return {"queries_tuning": 0}
    return tune(
        sketcher,
        endpoint,
        surrogate,
        codes,
        counts / counts.sum(),
        queries=budget,
        seed=recipe.training.seed,
        checkpoint=checkpoint,
        progress=progress,
    )


def measure_at(endpoint: Oracle, sketch: Bundle, images: ImageSet) -> _Figures:
    """Measure the accuracies of a sketch at the endpoint, through the shipped file.

    The endpoint is sent each decoded image that it was not sent before; of the labelled images none is sent.

    Returns:
        "accuracy_obfuscated" (as if all were sent), "accuracy_device", "accuracy_gated", "offload_rate", all in [0, 1],
        and "test_images"; without the first and the third if the budget does not allow the queries.
    """
    obfuscate = OnnxFunction(sketch.file(OBFUSCATOR_ONNX))
    codes: list[bytes] = []
    decoded: dict[bytes, Array] = {}
    shares: dict[str, list[npt.NDArray[np.bool_]]] = defaultdict(list)
    for batch, labels in images.scaled_batches():
        outputs = obfuscate.all(batch)
        own = softmax(device_logits(outputs, sketch))
        shares["accuracy_device"].append(own.argmax(axis=1) == labels)
        shares["offload_rate"].append(sketch.gate.sends(own) if sketch.gate else np.ones(len(labels), bool))
        codes += [row.tobytes() for row in outputs[-1]]
        decoded |= dict(zip(codes[-len(labels) :], outputs[0], strict=True))
    found = {name: np.concatenate(parts) for name, parts in shares.items()}
    with suppress(QueryBudgetExhausted):
        payloads = sketch.preprocessing.denormalize(np.stack(list(decoded.values())))
        predictions = dict(zip(decoded, endpoint(torch.from_numpy(payloads)).argmax(dim=1).tolist(), strict=True))
        cloud = np.array([predictions[code] for code in codes]) == images.labels.numpy()
        gated = np.where(found["offload_rate"], cloud, found["accuracy_device"])
        found |= {"accuracy_obfuscated": cloud, "accuracy_gated": gated}
    return {**{name: float(values.mean()) for name, values in found.items()}, "test_images": len(images)}
