"""A surrogate: a classifier that learns to predict as the endpoint does, through which gradients pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.provenance import provenance
from sfumato.artifacts.records import RecipeRecord
from sfumato.lab.data import ImageSet
from sfumato.lab.models import Normalize, build_classifier
from sfumato.lab.models.checkpoint import identify
from sfumato.lab.models.precision import compute
from sfumato.lab.training.engine import Options, fit
from sfumato.lab.training.export import write_classifier_bundle
from sfumato.lab.training.objectives import distillation_loss
from sfumato.lab.training.recipe import ObfuscatorRecipe, SketchRecipe
from sfumato.lab.training.recipe_parts import BlackBoxRecipe, TrainingRecipe
from sfumato.lab.training.setup import Run
from sfumato.lab.training.tasks import ClassifierTask, Losses

_CHECK_IMAGES = 64
_HELD_OUT = 0.1
"""The share of the endpoint's predictions that measures the agreement instead."""
_TEMPERATURE = 4.0
"""That scores are softened with; labels are not."""
_LEARNING_RATE = 0.1


class ImitationTask(ClassifierTask):
    """Train a classifier to predict as another one, from its predictions alone.

    Source: Papernot et al. 2017, section 4 (substitutes learned from labels); the loss is that of Hinton et al. 2015,
    section 2.

    Args:
        net: normalised images to logits.
        normalize: from [0, 1] to its input.
        predictions: (N, classes) float32, log-probabilities; the labels of the images are rows of these.
        temperature: that they are softened with, above 0; 1 where they are labels alone.
        bfloat16: compute the network so; see `sfumato.lab.models.precision`.
    """

    predictions: Tensor

    def __init__(
        self, net: nn.Module, normalize: Normalize, predictions: Tensor, *, temperature: float, bfloat16: bool = False
    ) -> None:
        super().__init__(net, normalize, temperature=temperature, bfloat16=bfloat16)
        self.register_buffer("predictions", predictions, persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Losses:  # type: ignore[override]  # it has no teacher
        """Images (N, 3, H, W) float in [0, 1], their rows of `predictions` (N,) int64 -> losses."""
        logits = compute(self.net, self.normalize(images), bfloat16=self.in_bfloat16)
        predictions = self.predictions[labels]
        agrees = (logits.detach().argmax(dim=1) == predictions.argmax(dim=1)).float().mean()
        return {"loss": distillation_loss(logits, predictions, temperature=self.temperature), "agreement": agrees}


@dataclass(frozen=True)
class Asked:
    """Images that were sent to the endpoint, and its predictions: (N, classes) float32, log-probabilities."""

    images: ImageSet
    predictions: Tensor
    preprocessing: Preprocessing


def learn_surrogate(
    fabric: Fabric,
    asked: Asked,
    recipe: ObfuscatorRecipe | SketchRecipe,
    options: Options,
    architecture: str,
    folder: Path,
    *,
    bfloat16: bool,
) -> Bundle:
    """Train a surrogate in a folder and write its bundle; resume an interrupted one, and return a finished one.

    The bundle has the figure "agreement": the share of held-out predictions whose highest class is the surrogate's.

    Raises:
        TrainingError, Interrupted: as `fit`.
    """
    run = Run(folder)
    if run.bundle.is_dir():
        return Bundle.load(run.bundle, kind="classifier")
    folder.mkdir(parents=True, exist_ok=True)
    images, predictions, preprocessing = asked.images, asked.predictions, asked.preprocessing
    plan = _plan(recipe.black_box, len(images), recipe.training.seed)
    fabric.seed_everything(plan.seed, verbose=False)
    numbered = replace(images, labels=torch.arange(len(images)))
    learned, compared = numbered.split(max(1, round(_HELD_OUT * len(images))))
    normalize = Normalize(preprocessing.mean, preprocessing.std)
    net = build_classifier(architecture, predictions.shape[1])
    temperature = _TEMPERATURE if recipe.black_box.answers == "scores" else 1.0
    task = ImitationTask(net, normalize, predictions, temperature=temperature, bfloat16=bfloat16)
    fitted = fit(
        fabric,
        task,
        plan,
        train=learned,
        test=compared,
        augmentation=recipe.data.augmentation,
        checkpoint=run.checkpoint,
        identity=identify(architecture, plan.model_dump(mode="json"), images.sha256, predictions),
        options=replace(options, resume=run.checkpoint.is_file()),
    )
    note = "Learned from an endpoint's predictions."
    bundle = write_classifier_bundle(
        run.bundle,
        task,
        compared.images[:_CHECK_IMAGES].float() / 255,
        name=f"surrogate-{architecture}",
        labels=images.names,
        preprocessing=preprocessing,
        recipe=RecipeRecord(kind="classifier", architecture=architecture, note=note),
    )
    figures = bundle.figures.updated(agreement=fitted.figures["agreement"], compared=len(compared))
    facts = provenance(
        seed=plan.seed, epochs=plan.epochs, answers=len(learned), training_seconds=round(fitted.seconds, 1)
    )
    return replace(bundle, figures=figures, provenance=facts).save()


def _plan(box: BlackBoxRecipe, count: int, seed: int) -> TrainingRecipe:
    return TrainingRecipe(
        epochs=max(1, round(box.images_seen / count)),
        batch_size=min(128, max(2, count // 4)),
        seed=seed,
        optimizer="sgd",
        learning_rate=_LEARNING_RATE,
        weight_decay=5e-4,
        schedule="one-cycle",
        validate_every=10,
    )
