"""Additive noise."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.lab.baselines.method import NoisyMethod


class Noise(NoisyMethod):
    """Gaussian noise, fresh for every image and number, not cut to [0, 1].

    It is for measuring: ONNX Runtime's random numbers are not made to withstand somebody who predicts them.

    Source: the Gaussian mechanism, Dwork and Roth 2014, appendix A.
    """

    says = "adds Gaussian noise"
    source = "Dwork and Roth 2014"
    strength_says = "the noise's standard deviation, in units of the [0, 1] scale"
    default = 0.05
    noise_kind = "gaussian"

    def __init__(self, height: int, width: int, *, strength: float | None = None, seed: int = 0) -> None:
        super().__init__(height, width, strength=strength, seed=seed)
        self.std = self.positive()

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        return images + self.std * torch.randn_like(images)

    def mean(self, images: Tensor) -> Tensor:
        """See `NoisyMethod`."""
        return images

    def noise_std(self) -> Tensor:
        """See `NoisyMethod`."""
        return torch.full((3, self.height, self.width), self.std)
