"""A surrogate: a classifier of our own that answers as the endpoint did, through which gradients pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from sfumato.artifacts.bundle import Bundle, Preprocessing
from sfumato.artifacts.provenance import provenance
from sfumato.lab.data import ImageSet
from sfumato.lab.models import Normalize, build_classifier
from sfumato.lab.models.checkpoint import identify
from sfumato.lab.models.precision import compute
from sfumato.lab.training.context import augmentation_of, schedule_of
from sfumato.lab.training.engine import fit
from sfumato.lab.training.export import write_classifier_bundle
from sfumato.lab.training.objectives import distillation_loss
from sfumato.lab.training.optimizer import optimizer_of
from sfumato.lab.training.recipe import DataRecipe, TrainingRecipe
from sfumato.lab.training.tasks import ClassifierTask, Losses

_CHECK_IMAGES = 64
_HELD_OUT = 0.1
"""The share of the answers that is not learned from, but compared with."""


class ImitationTask(nn.Module):
    """Trains a classifier to answer as another one did, of which nothing but these answers is known.

    Source: Papernot et al. 2017, section 4 (substitutes learned from answers); the loss is that of Hinton et al. 2015,
    section 2.

    Args:
        net: normalised images to logits.
        normalize: from [0, 1] to its input.
        answers: (N, classes) float32, logarithms of probabilities; "labels" number these.
        temperature: that answers are softened with, above 0; 1 where they are labels alone.
        bfloat16: compute the network so; see `sfumato.lab.models.precision`.
    """

    answers: Tensor

    def __init__(
        self, net: nn.Module, normalize: Normalize, answers: Tensor, *, temperature: float, bfloat16: bool = False
    ) -> None:
        super().__init__()
        self.in_bfloat16 = bfloat16
        self.net = net
        self.normalize = normalize
        self.temperature = temperature
        self.register_buffer("answers", answers, persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Images (N, 3, H, W) float in [0, 1], which answers they got (N,) int64 -> losses."""
        logits = compute(self.net, self.normalize(images), bfloat16=self.in_bfloat16)
        answers = self.answers[labels]
        agrees = (logits.detach().argmax(dim=1) == answers.argmax(dim=1)).float().mean()
        return {"loss": distillation_loss(logits, answers, temperature=self.temperature), "agreement": agrees}


def learn_surrogate(
    fabric: Fabric,
    folder: Path,
    *,
    architecture: str,
    images: ImageSet,
    answers: Tensor,
    preprocessing: Preprocessing,
    data: DataRecipe,
    plan: TrainingRecipe,
    temperature: float,
    bfloat16: bool,
) -> Bundle:
    """Trains a surrogate and writes its bundle; one that is there already is used.

    Args:
        fabric: launched.
        folder: of the run; an interrupted one is gone on with.
        architecture: of the zoo.
        images: that the endpoint was asked about; their labels are not looked at.
        answers: (N, classes) float32, logarithms of probabilities.
        preprocessing: how an image becomes the endpoint's input.
        data: how training images are varied.
        plan: how the weights are found.
        temperature: that answers are softened with.
        bfloat16: see `Precision.dense_bfloat16`.

    Returns:
        Its bundle, with "agreement": on answers that it did not learn from, how often its highest class is theirs.

    Raises:
        TrainingError: as `fit` does.
        Interrupted: as `fit` does.
    """
    bundle_path, checkpoint = folder / "bundle", folder / "checkpoint.pt"
    if bundle_path.is_dir():
        return Bundle.load(bundle_path, kind="classifier")
    folder.mkdir(parents=True, exist_ok=True)
    fabric.seed_everything(plan.seed, verbose=False)
    numbered = replace(images, labels=torch.arange(len(images)))
    learned, compared = numbered.split(max(1, round(_HELD_OUT * len(images))))
    normalize = Normalize(preprocessing.mean, preprocessing.std)
    net = build_classifier(architecture, answers.shape[1])
    task = ImitationTask(net, normalize, answers, temperature=temperature, bfloat16=bfloat16)
    optimizer, scheduler = optimizer_of(plan, task, steps=len(learned) // plan.batch_size)
    fitted = fit(
        fabric,
        task,
        optimizer,
        scheduler,
        train=learned,
        test=compared,
        augmentation=augmentation_of(data),
        schedule=schedule_of(plan),
        checkpoint=checkpoint,
        identity=identify(architecture, plan.model_dump(mode="json"), images.sha256, answers),
        resume=checkpoint.is_file(),
    )
    bundle = write_classifier_bundle(
        bundle_path,
        ClassifierTask(task.net.cpu().eval(), normalize),
        compared.images[:_CHECK_IMAGES].float() / 255,
        name=f"surrogate-{architecture}",
        labels=images.names,
        preprocessing=preprocessing,
        recipe={"kind": "classifier", "architecture": architecture, "note": "Learned from an endpoint's answers."},
    )
    figures = bundle.figures.updated(agreement=fitted.figures["agreement"], compared=len(compared))
    seconds = round(fitted.seconds, 1)
    origin = provenance(seed=plan.seed, epochs=plan.epochs, answers=len(learned), training_seconds=seconds)
    return replace(bundle, figures=figures, provenance=origin).save()
