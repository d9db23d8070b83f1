"""Learned noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfumato.lab.baselines.fit import learn
from sfumato.lab.baselines.method import NoisyMethod, Training

FIRST_SCALE = 0.02
LEARNING_RATE = 0.03


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
        self.log_scale = nn.Parameter(torch.full((3, self.height, self.width), math.log(FIRST_SCALE)))

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

        learn(training, self.parameters(), loss, seed=self.seed, learning_rate=LEARNING_RATE)
        return training.classifier
