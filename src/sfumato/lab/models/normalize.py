"""From images to a classifier's input."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """`(images - mean) / std`, per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (N, C, H, W) float, the classifier's input."""
        return (images - self.mean) / self.std
