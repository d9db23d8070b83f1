"""From an endpoint's address to an obfuscator: ask, learn surrogates, train against them, tune by answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.records import Figures
from sfumato.errors import RecipeError, TrainingError
from sfumato.lab.classifiers import FrozenClassifier, load_classifier
from sfumato.lab.data import INFERENCE_BATCH, ImageSet
from sfumato.lab.models import Sketcher
from sfumato.lab.training.blackbox.measuring import measure_at
from sfumato.lab.training.blackbox.oracle import Oracle
from sfumato.lab.training.blackbox.surrogate import learn_surrogate
from sfumato.lab.training.blackbox.tuning import tune
from sfumato.lab.training.building import answered, begin_from, normalize, sketch_task
from sfumato.lab.training.context import launch, load_both, preprocessing_of
from sfumato.lab.training.export import write_sketch_bundle
from sfumato.lab.training.prototypes import log_probabilities_of, put_in
from sfumato.lab.training.recipe import AnyRecipe, BlackBoxRecipe, ClassifierRecipe, SketchRecipe, TrainingRecipe
from sfumato.lab.training.run import CHECK_IMAGES, train
from sfumato.lab.training.setup import Run

_LEAST_ANSWERS = 16
_TEMPERATURE = 4.0
"""That scores are softened with; labels are not."""
_SURROGATE_RATE = 0.1
_NOT_ANSWERED = 1e3
"""What a score loses where the endpoint answered another class: such an image is taken only if there is no other."""


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
) -> Bundle:
    """Trains an obfuscator for a classifier of which only answers can be had.

    The training images are sent to the endpoint as they are, so they have to be public ones; their labels are not
    looked at. Everything that was answered is kept in `answers.sqlite`.

    Args:
        recipe: an obfuscator's, whose `classifier` is an address; see `BlackBoxRecipe`.
        folder: of the run; has a folder for each surrogate, and one for the obfuscator.
        accelerator: see `train`.
        devices: see `train`; surrogates learn on one.
        resume: go on with an interrupted run.
        overwrite: start anew, and ask anew.
        token: the endpoint's bearer token, if it wants one.
        ca_file: PEM file with the authorities to trust instead of the system's.

    Returns:
        The obfuscator's bundle, in `folder/bundle`. Its figures are about the endpoint: "accuracy_obfuscated" is the
        share of test images whose drawing it answers right (sketches alone, as these have few drawings),
        "queries_learning", "queries_tuning", "surrogate_agreement".

    Raises:
        SfumatoError: each step's own.
    """
    if isinstance(recipe, ClassifierRecipe):
        raise RecipeError("only an obfuscator is for a classifier; this recipe trains one")
    if not recipe.black_box.model:
        raise RecipeError("black_box.model is missing: the classifier's name at the endpoint")
    if folder.exists() and any(folder.iterdir()) and not (resume or overwrite):
        raise TrainingError(f"{folder} holds a run already: --resume goes on with it, --overwrite starts anew")
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    fabric, precision = launch(TrainingRecipe(seed=recipe.training.seed), folder, accelerator, 1)
    images, test = load_both(recipe.data, fabric, label_free=True)
    images = replace(images, names=test.names)
    box, preprocessing = recipe.black_box, preprocessing_of(recipe.data.source, images)
    if isinstance(recipe, SketchRecipe) and recipe.drawing == "photographs":
        box = box.model_copy(update={"tuning": 0.0})  # the endpoint's answers choose them, and were paid for already
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
        asked = _draw(images, _to_learn_from(box, len(images)), recipe.training.seed)
        answers = _ask(endpoint, asked)
        surrogates = [
            learn_surrogate(
                fabric,
                folder / "surrogates" / architecture,
                architecture=architecture,
                images=asked,
                answers=answers,
                preprocessing=preprocessing,
                data=recipe.data,
                plan=_surrogate_plan(box, len(asked), recipe.training.seed),
                temperature=_TEMPERATURE if box.answers == "scores" else 1.0,
                bfloat16=precision.dense_bfloat16,
            )
            for architecture in box.surrogates
        ]
        known = recipe.model_copy(
            update={
                "classifier": str(surrogates[0].path),
                "transfer": recipe.transfer.model_copy(update={"also": tuple(str(s.path) for s in surrogates[1:])}),
                **({"teacher_weight": 1.0} if isinstance(recipe, SketchRecipe) else {}),
            }
        )
        part = Run(folder / "obfuscator")
        if part.bundle.is_dir():
            bundle = Bundle.load(part.bundle, kind="obfuscator")
        else:
            more = {"accelerator": accelerator, "devices": devices, "resume": part.checkpoint.is_file()}
            bundle = train(known, part.folder, **more)  # type: ignore[arg-type]
        frozen = load_classifier(surrogates[0].path)
        served = replace(frozen, name=box.model, fingerprint=endpoint.fingerprint or frozen.fingerprint)
        figures: dict[str, float | int] = {}
        if isinstance(known, SketchRecipe):
            written, figures = _tuned(known, bundle, served, endpoint, images, (asked, answers), folder)
            figures |= measure_at(endpoint, written, test)
        else:
            written = _copied(bundle, served, folder / "bundle")
        figures |= {
            "surrogate_agreement": max(surrogate.figures.agreement or 0.0 for surrogate in surrogates),
            "queries_learning": len(asked),
            "queries": endpoint.spent,
        }
        black_box = {**box.model_dump(mode="json"), "figures": figures}
        origin = written.provenance.updated(**bundle.provenance.to_json(), black_box=black_box)
        return replace(written, figures=written.figures.updated(**figures), provenance=origin).save()


def _to_learn_from(box: BlackBoxRecipe, images: int) -> int:
    count = min(images, round(box.queries * (1 - box.tuning)))
    if count < _LEAST_ANSWERS:
        raise RecipeError(f"{count} answers are too few to learn from; {_LEAST_ANSWERS} at least")
    return count


def _draw(images: ImageSet, count: int, seed: int) -> ImageSet:
    """So many images from all over the set; more of the same are drawn if the count grows."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return replace(images, images=images.images[order], labels=images.labels[order])


def _ask(endpoint: Oracle, images: ImageSet) -> Tensor:
    with _bar("asking the endpoint", len(images)) as shown:
        parts = torch.split(images.images, INFERENCE_BATCH)
        return torch.cat([endpoint(part.float() / 255, shown=shown) for part in parts])


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


def _tuned(
    known: SketchRecipe,
    bundle: Bundle,
    frozen: FrozenClassifier,
    endpoint: Oracle,
    images: ImageSet,
    answered_ones: tuple[ImageSet, Tensor],
    folder: Path,
) -> tuple[Bundle, dict[str, float | int]]:
    """The sketch with its drawings changed to what the endpoint itself answers, and what came of that."""
    train_set, held_out = images.split(known.held_out_images)
    task = sketch_task(known, frozen, train_set)
    begin_from(bundle, known, task, frozen)
    surrogate = nn.Sequential(normalize(frozen.preprocessing), frozen.net.eval())
    figures: dict[str, float | int] = {"queries_tuning": 0}
    if task.sketcher.photographs is not None:
        asked, answers = answered_ones
        scores = answers + log_probabilities_of(asked.images, [surrogate])  # labels alone are all equally sure
        is_answer = torch.nn.functional.one_hot(answers.argmax(dim=1), answers.shape[1]).bool()
        scores = torch.where(is_answer, scores, scores - _NOT_ANSWERED)
        put_in(task.sketcher.photographs, asked.images, scores, frozen.labels)
    else:
        codes, weights = distinct_codes(task.sketcher, train_set)
        kept = min(endpoint.left, round(known.black_box.queries * known.black_box.tuning))
        budget = kept - len(codes)  # these measure what came of it
        if budget >= len(codes):
            with _bar("tuning by answers", budget) as shown:
                result = tune(
                    task.sketcher,
                    endpoint,
                    surrogate,
                    codes,
                    weights,
                    queries=budget,
                    seed=known.training.seed,
                    shown=shown,
                )
            figures = {
                "queries_tuning": result.queries,
                "understood_before_tuning": result.right_before,
                "understood_after_tuning": result.right_after,
            }
    written = write_sketch_bundle(
        folder / "bundle",
        task,
        images.images[:CHECK_IMAGES].float() / 255,
        classifier=frozen,
        recipe=bundle.recipe.to_json(),
        known=train_set,
        held_out=answered(held_out, frozen),
        offload_rate=known.offload_rate,
    )
    return written, figures


@torch.no_grad()
def distinct_codes(sketcher: Sketcher, images: ImageSet) -> tuple[Tensor, Tensor]:
    """The codes that images get, each once, (K, classes + learned bits) float32, and the share of each, (K,)."""
    sketcher.eval()
    with _bar("looking for codes", len(images)) as shown:
        parts = []
        for part in torch.split(images.images, INFERENCE_BATCH):
            parts.append(sketcher.look(part.float() / 255)[0])
            shown(len(part))
    codes, counts = torch.unique(torch.cat(parts), dim=0, return_counts=True)
    return codes, counts / counts.sum()


def _copied(bundle: Bundle, frozen: FrozenClassifier, folder: Path) -> Bundle:
    """The bundle with the endpoint's name instead of the surrogate's."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle.path, folder)
    copied = replace(bundle, path=folder, name=frozen.name, classifier_fingerprint=frozen.fingerprint)
    return replace(copied, figures=Figures()).save()


@contextmanager
def _bar(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda done: progress.advance(task, done)
