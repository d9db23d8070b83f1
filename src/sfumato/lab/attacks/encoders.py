"""Networks of the attackers that compare, link or classify payloads and images of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.lab.models import autocast
from sfumato.lab.models.classifiers import BasicBlock, ResNet


class Encoder(nn.Module):
    """A small convolutional network with strides, for payloads or for images.

    Args:
        inputs: (N, C, H', W') float32, examples: their channels' mean and deviation standardise the input.
        outputs: numbers that come out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inputs: Tensor, outputs: int) -> None:
        super().__init__()
        std, mean = torch.std_mean(inputs, dim=(0, 2, 3), keepdim=True)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp_min(1e-6))
        self.body = self._built(inputs.shape[1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H', W') float32 -> (N, outputs) float32."""
        with autocast(x.device):
            out: Tensor = self.body((x - self.mean) / self.std)
        return out.float()

    def _built(self, channels: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(128 * 16, outputs),
        )


class ResidualEncoder(Encoder):
    """As `Encoder`, deeper: 1.2 million parameters, and three times the time.

    Source: He et al. 2016, section 3.3; a block at each of three scales, chosen for a CPU.
    """

    def _built(self, channels: int, outputs: int) -> nn.Module:
        return ResNet(BasicBlock, (0, 1, 1, 1), (32, 64, 128, 256), outputs, reduction=2, channels=channels)
