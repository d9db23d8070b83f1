"""Noise, and suppressed numbers, learned for every number of an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfumato.errors import TrainingError
from sfumato.lab.baselines.method import NoisyMethod, Training, learn

MAX_SIGMA = 0.5
"""The largest standard deviation of a cloak's noise: twice that of an image's numbers."""
_FIRST_SCALE = 0.02
_FIRST_RHO = -2.0
_NOISE_WEIGHT = 0.3
_CLOAK_RATE = 0.05


class Shredder(NoisyMethod):
    """Laplace noise whose location and scale are learned for every number of the image.

    The paper trains many noise tensors and fits a Laplace distribution to them; here the distribution itself is
    learned, through its reparametrisation, and the image is the cut layer: the classifier is frozen and whole.

    Source: Mireshghallah et al. 2020 (cross-entropy less a weight times the noise's magnitude).
    """

    summary = "adds Laplace noise of learned location and scale"
    source = "Mireshghallah et al. 2020"
    strength_help = "the weight of the noise's log variance relative to the cross-entropy"
    default = 0.4
    learns = True
    iterates = True
    noise_kind = "laplace"

    def _set_up(self) -> None:
        self.weight = self._positive()
        self.location = nn.Parameter(torch.zeros(3, self.height, self.width))
        self.log_scale = nn.Parameter(torch.full((3, self.height, self.width), math.log(_FIRST_SCALE)))

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        uniform = torch.rand_like(images) - 0.5
        unit = -uniform.sign() * torch.log((1 - 2 * uniform.abs()).clamp_min(2**-24))
        return self.mean(images) + unit * self.log_scale.exp()

    def mean(self, images: Tensor) -> Tensor:
        """See `NoisyMethod`."""
        return images + self.location

    def noise_std(self) -> Tensor:
        """See `NoisyMethod`; a Laplace distribution of scale b has variance 2 b^2."""
        return math.sqrt(2) * self.log_scale.detach().exp()

    def fit(self, training: Training) -> nn.Module:
        """See `Method`."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            log_variance = 2 * self.log_scale.mean() + math.log(2)
            return training.classification_loss(self(images), labels) - self.weight * log_variance

        learn(training, self.parameters(), loss, seed=self.seed, learning_rate=0.03)
        return training.classifier


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
        self.rho = nn.Parameter(torch.full((3, self.height, self.width), _FIRST_RHO))
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
            return training.classification_loss(self(images), labels) - _NOISE_WEIGHT * self._sigma().log().mean()

        def blanked(images: Tensor, labels: Tensor) -> Tensor:
            return training.classification_loss(self(images), labels)

        learn(training, [self.rho], noisy, seed=self.seed, learning_rate=_CLOAK_RATE, share=0.5)
        with torch.no_grad():
            suppressed = self.rho.flatten().argsort(descending=True)[: round(self.share * self.rho.numel())]
            self.kept.view(-1)[suppressed] = 0.0
            some = training.images[:: max(1, len(training.images) // 5000)]
            self.constants.copy_(some.float().mean(dim=0) / 255)
        learn(training, [self.constants], blanked, seed=self.seed + 1, learning_rate=_CLOAK_RATE / 5, share=0.5)
        return training.classifier

    def _sigma(self) -> Tensor:
        return MAX_SIGMA * (1 + torch.tanh(self.rho)) / 2
