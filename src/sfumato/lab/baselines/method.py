"""The interface of all baseline obfuscators, and the training data of those that learn.

A method is built with an image size, a strength and a seed; `forward` turns images into obfuscated images of the same
size. The payload is that, normalised for the classifier (`sfumato.lab.baselines.bundles`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import TrainingError
from sfumato.lab.models import Normalize, autocast
from sfumato.progress import Progress, silent

STAGE = "fitting the baseline"


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
    """A baseline obfuscator.

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
