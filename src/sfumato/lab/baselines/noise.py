"""Additive noise."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.lab.baselines.method import NoisyMethod


class Noise(NoisyMethod):
    """Gaussian noise, fresh for every image and number, not cut to [0, 1].

    For measurements only: ONNX Runtime's random numbers are not cryptographically secure.

    Source: the Gaussian mechanism, Dwork and Roth 2014, appendix A.
    """

    summary = "adds Gaussian noise"
    source = "Dwork and Roth 2014"
    strength_help = "the noise's standard deviation, in units of the [0, 1] scale"
    default = 0.05
    noise_kind = "gaussian"

    def _set_up(self) -> None:
        self.std = self._positive()

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        return images + self.std * torch.randn_like(images)

    def mean(self, images: Tensor) -> Tensor:
        """See `NoisyMethod`."""
        return images

    def noise_std(self) -> Tensor:
        """See `NoisyMethod`."""
        return torch.full((3, self.height, self.width), self.std)
