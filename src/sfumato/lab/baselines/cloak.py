"""Suppression of the features that the classifier needs least."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.errors import TrainingError
from sfumato.lab.baselines.fit import learn
from sfumato.lab.baselines.method import NoisyMethod, Training

MAX_SIGMA = 0.5
"""The largest standard deviation of the noise: twice that of an image's numbers."""
FIRST_RHO = -2.0
NOISE_WEIGHT = 0.3
LEARNING_RATE = 0.05


class Cloak(NoisyMethod):
    """Learns how much noise each number of an image tolerates, then replaces the most tolerant by learned constants.

    First `sigma = MAX_SIGMA (1 + tanh rho) / 2` is learned with cross-entropy plus a weight times the mean of
    `-log sigma`; then the share of numbers with the largest sigma is suppressed, and the constants that replace them
    are learned with cross-entropy alone. The other numbers keep their noise.

    Source: Mireshghallah et al. 2021 (perturbation, then suppression); each stage takes half of the training.
    """

    summary = "learns which numbers the classifier needs, blanks the others, adds noise"
    source = "Mireshghallah et al. 2021"
    strength_help = "the share of the numbers that is suppressed (at least 0, below 1)"
    default = 0.3
    learns = True
    iterates = True
    noise_kind = "gaussian"
    kept: Tensor

    def _set_up(self) -> None:
        if self.strength is None or not 0 <= self.strength < 1:
            raise TrainingError(f"{self.strength_help}: got {self.strength}")
        self.share = self.strength
        self.rho = nn.Parameter(torch.full((3, self.height, self.width), FIRST_RHO))
        self.constants = nn.Parameter(torch.full((3, self.height, self.width), 0.5))
        self.register_buffer("kept", torch.ones(3, self.height, self.width))

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        return self.mean(images) + self.kept * self._sigma() * torch.randn_like(images)

    def mean(self, images: Tensor) -> Tensor:
        """See `NoisyMethod`."""
        return self.kept * images + (1 - self.kept) * self.constants

    def noise_std(self) -> Tensor:
        """See `NoisyMethod`; 0 for a constant, which does not depend on the image."""
        return (self.kept * self._sigma()).detach()

    def fit(self, training: Training) -> nn.Module:
        """See `Method`."""

        def noisy(images: Tensor, labels: Tensor) -> Tensor:
            return training.classification_loss(self(images), labels) - NOISE_WEIGHT * self._sigma().log().mean()

        def blanked(images: Tensor, labels: Tensor) -> Tensor:
            return training.classification_loss(self(images), labels)

        learn(training, [self.rho], noisy, seed=self.seed, learning_rate=LEARNING_RATE, share=0.5)
        with torch.no_grad():
            suppressed = self.rho.flatten().argsort(descending=True)[: round(self.share * self.rho.numel())]
            self.kept.view(-1)[suppressed] = 0.0
            some = training.images[:: max(1, len(training.images) // 5000)]
            self.constants.copy_(some.float().mean(dim=0) / 255)
        learn(training, [self.constants], blanked, seed=self.seed + 1, learning_rate=LEARNING_RATE / 5, share=0.5)
        return training.classifier

    def _sigma(self) -> Tensor:
        return MAX_SIGMA * (1 + torch.tanh(self.rho)) / 2
