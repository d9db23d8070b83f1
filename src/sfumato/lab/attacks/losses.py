"""Losses of learned decoders. Each takes reconstructed and original images and returns a scalar."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from sfumato.lab.models import reverse_gradient
from sfumato.lab.models.decoders import patch_discriminator

ADVERSARIAL_WEIGHT = 0.01
"""Of the discriminator's loss, relative to the squared error; about where both pull equally hard at 32 pixels."""


class Structure(nn.Module):
    """L1 and structural similarity.

    Source: Zhao et al. 2017, section III.D, with SSIM at one scale; weights as they give them.
    """

    def forward(self, reconstructed: Tensor, images: Tensor) -> Tensor:
        """Reconstructed and original (N, 3, H, W) float32, sides at least 11 -> scalar."""
        ssim = structural_similarity_index_measure(reconstructed, images, data_range=1.0)
        assert isinstance(ssim, Tensor)
        return 0.84 * (1 - ssim) + 0.16 * F.l1_loss(reconstructed, images)


class Adversarial(nn.Module):
    """Squared error and a discriminator that is trained along: sharp images, where the error alone would blur.

    Source: Goodfellow et al. 2014, equation 1, the discriminator joined by gradient reversal (Ganin and
    Lempitsky 2015); on patches as Isola et al. 2017, section 3.2.2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = patch_discriminator()

    def forward(self, reconstructed: Tensor, images: Tensor) -> Tensor:
        """Reconstructed and original (N, 3, H, W) float32 -> scalar."""
        # The discriminator learns at full strength; only what the decoder feels of it is weighed.
        felt = reverse_gradient(reconstructed, ADVERSARIAL_WEIGHT)
        real, fake = self.discriminator(torch.cat([images, felt])).chunk(2)
        return F.mse_loss(reconstructed, images) + F.softplus(-real).mean() + F.softplus(fake).mean()
