"""Running means and variances of the codes of each class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MEMORY = 0.1
"""Share of a batch in the running statistics of the classes that it holds, as in batch norm."""


class CodeMixture(nn.Module):
    """A Gaussian with diagonal covariance per class that follows the codes during training.

    Attributes:
        means: (classes, *shape) float32.
        variances: (classes, *shape) float32, of the codes without their noise.
    """

    means: Tensor
    variances: Tensor

    def __init__(self, classes: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(classes, *shape))
        self.register_buffer("variances", torch.ones(classes, *shape))

    @torch.no_grad()
    def follow(self, code: Tensor, labels: Tensor) -> None:
        """Update the statistics with the codes (N, *shape) float of images with labels (N,) int64."""
        member = torch.nn.functional.one_hot(labels, len(self.means)).T.to(self.means)
        counts = member.sum(dim=1)
        seen = counts > 0
        share = (member / counts.clamp_min(1)[:, None])[seen]
        flat = code.detach().flatten(1).to(self.means)
        means = share @ flat
        # Around the running mean, so that a class with one image in a batch still has a variance.
        old = self.means[seen].flatten(1)
        squares = share @ flat.square() - 2 * old * means + old.square()
        self.variances[seen] = self.variances[seen].lerp(squares.clamp_min(0).view_as(self.variances[seen]), _MEMORY)
        self.means[seen] = self.means[seen].lerp(means.view_as(self.means[seen]), _MEMORY)
