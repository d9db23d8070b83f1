"""The interface of all baseline obfuscators, and the training of those that learn by gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from sfumato.artifacts.signals import interruptible
from sfumato.errors import Interrupted, TrainingError
from sfumato.lab.data import Augmentation, augment
from sfumato.lab.models import Normalize, autocast
from sfumato.progress import Progress, silent

STAGE = "fitting the baseline"

Loss = Callable[[Tensor, Tensor], Tensor]
"""Images (B, 3, H, W) float32 in [0, 1] and labels (B,) int64 -> scalar."""


@dataclass(frozen=True)
class Training:
    """The data, the classifier and the budget that a method learns with.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        classifier: normalised images (N, 3, H, W) float32 -> logits (N, classes); evaluation mode, no gradients.
        normalize: from images in [0, 1] to the classifier's input.
        epochs: passes over the images; a share of one is allowed.
        batch_size: images per step.
        progress: see `Progress`.
    """

    images: Tensor
    labels: Tensor
    classifier: nn.Module
    normalize: Normalize
    epochs: float = 1.0
    batch_size: int = 64
    progress: Progress = silent

    def classification_loss(self, obfuscated: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of the classifier's prediction, in nats.

        Args:
            obfuscated: (B, 3, H, W) float32 in the scale of images, not bounded.
            labels: (B,) int64.
        """
        # Its weights do not change, so half precision costs nothing but a little noise in the gradient.
        with autocast():
            logits: Tensor = self.classifier(self.normalize(obfuscated))
        return F.cross_entropy(logits.float(), labels)


class Method(nn.Module):
    """A baseline obfuscator: turns images into obfuscated images, which are then normalised for the classifier.

    Args:
        height: rows of the images.
        width: columns of the images.
        strength: see the class's `strength_help`; None takes its `default`.
        seed: of everything random that stays: keys, first weights, the order of the training images.

    Attributes:
        summary: one line for users.
        source: the work to cite.
        strength_help: meaning of the strength; empty if there is none.
        default: the strength if none is given; None if there is none.
        stochastic: whether two calls on one image differ.
        learns: whether `fit` does anything.
        iterates: whether it takes epochs for that.

    Raises:
        TrainingError: a strength or a size that it does not take.
    """

    summary: ClassVar[str]
    source: ClassVar[str]
    strength_help: ClassVar[str] = ""
    default: ClassVar[float | None] = None
    stochastic: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    iterates: ClassVar[bool] = False

    def __init__(self, height: int, width: int, *, strength: float | None = None, seed: int = 0) -> None:
        super().__init__()
        if strength is not None and self.default is None:
            raise TrainingError(f"{type(self).__name__} has no strength, got {strength}; leave it out")
        self.height, self.width, self.seed = height, width, seed
        self.strength = self.default if strength is None else strength
        self._set_up()

    def _set_up(self) -> None:
        """Check the strength, and create parameters and buffers; called once, by the constructor."""

    def forward(self, images: Tensor) -> Tensor:
        """Obfuscate: (N, 3, H, W) float32 in [0, 1] -> (N, 3, H, W) float32 in the scale of images, not bounded."""
        raise NotImplementedError

    def fit(self, training: Training) -> nn.Module:
        """Learn from images; do nothing by default.

        Returns:
            The classifier to use it with: `training.classifier`, unless the method trains that too.

        Raises:
            TrainingError: too few images, or a loss that is not finite.
            Interrupted: Ctrl-C or SIGTERM.
        """
        return training.classifier

    def _positive(self) -> float:
        """Return the strength, which must be above 0."""
        if self.strength is None or not 0 < self.strength < float("inf"):
            raise TrainingError(f"{self.strength_help} must be above 0, got {self.strength}")
        return self.strength

    def _whole(self) -> int:
        """Return the strength, which must be a whole number above 0."""
        value = self._positive()
        if value != int(value):
            raise TrainingError(f"{self.strength_help} must be a whole number, got {value:g}")
        return int(value)

    def _tiles(self) -> int:
        """Return the strength as the side of square tiles that cover the image."""
        side = self._whole()
        if self.height % side or self.width % side:
            raise TrainingError(
                f"{self.strength_help} must divide both sides of {self.height}x{self.width} images, got {side}"
            )
        return side


class NoisyMethod(Method):
    """A method whose output is `mean(images)` plus noise, each number's noise independent.

    Attributes:
        noise_kind: "gaussian" or "laplace".
    """

    stochastic = True
    noise_kind: ClassVar[str]

    def mean(self, images: Tensor) -> Tensor:
        """Return the output without the noise, for (N, 3, H, W) float in [0, 1]; differentiable."""
        raise NotImplementedError

    def noise_std(self) -> Tensor:
        """Return the standard deviation of each number's noise, (3, H, W) float32, in units of the [0, 1] scale."""
        raise NotImplementedError


def learn(
    training: Training,
    parameters: Iterable[nn.Parameter],
    loss: Loss,
    *,
    seed: int,
    learning_rate: float,
    share: float = 1.0,
) -> None:
    """Train with Adam and one cycle of the learning rate, on mirrored images.

    Source: Kingma and Ba 2015; Smith and Topin 2018.

    Args:
        training: images, epochs and progress.
        parameters: are learned.
        loss: see `Loss`.
        seed: of the order, the mirroring and the loss's random numbers.
        learning_rate: the highest one.
        share: of the epochs.

    Raises:
        TrainingError: fewer than 2 images, no epochs, or a loss that is not finite.
        Interrupted: Ctrl-C or SIGTERM.
    """
    count = len(training.labels)
    batch_size = min(training.batch_size, count)
    if batch_size < 2 or not 0 < training.epochs < math.inf:
        raise TrainingError(
            f"training needs at least 2 images a step and epochs above 0, got {batch_size} and {training.epochs}"
        )
    total = max(1, round(training.epochs * share * count / batch_size))
    learned = list(parameters)
    optimizer = torch.optim.Adam(learned, lr=learning_rate)
    # The schedule divides by zero in a cycle of a few steps.
    scheduler = OneCycleLR(optimizer, learning_rate, total_steps=max(total, 9) + 1, pct_start=0.2)
    source = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    with interruptible() as interrupted, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(1, total + 1):
            if len(order) < batch_size:
                order = torch.randperm(count, generator=source)
            batch, order = order[:batch_size], order[batch_size:]
            images = augment(training.images[batch], Augmentation(flip=True), source).float().div_(255)
            value = loss(images.contiguous(memory_format=torch.channels_last), training.labels[batch])
            if not torch.isfinite(value):
                raise TrainingError(f"the loss is {value.item()} at step {step} of {total}; lower the strength")
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learned, 5.0)
            optimizer.step()
            scheduler.step()
            training.progress(STAGE, step, total, f"loss {value.item():.4f}")
            if interrupted:
                raise Interrupted("interrupted; nothing was written")
