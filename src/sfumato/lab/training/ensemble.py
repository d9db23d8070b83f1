"""Several frozen classifiers: a payload for several of different architectures transfers better to one more."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.lab.models import Normalize
from sfumato.lab.models.precision import compute

_SMALLEST = 0.8
"""The least side of a shrunk image, as a share of its own; ours. Xie et al. go from 330 pixels to 299, 0.9."""


def vary(images: Tensor, *, share: float) -> Tensor:
    """Shrink a batch at random and pad it with black at a random place, or leave it: input diversity.

    A payload then cannot depend on the exact position of each pixel.

    Images are (N, 3, H, W) float, as is the result, through which gradients pass; `share` in [0, 1] is how often.

    Source: Xie et al. 2019, "Improving transferability of adversarial examples with input diversity", section 3.2.
    """
    if float(torch.rand(())) >= share:
        return images
    size = images.shape[2:]
    scale = _SMALLEST + (1 - _SMALLEST) * float(torch.rand(()))
    height, width = (max(1, round(side * scale)) for side in size)
    top, left = (int(torch.randint(whole - part + 1, ())) for whole, part in zip(size, (height, width), strict=True))
    small = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
    return F.pad(small, (left, size[1] - width - left, top, size[0] - height - top))


class Teachers(nn.Module):
    """Several classifiers as one teacher, whose logits are the mean of theirs.

    Softened by any temperature, that is the geometric mean of their predictions up to a factor.

    Source: Hinton et al. 2015, section 3 (the geometric mean as the teacher's prediction).

    Args:
        nets: images in [0, 1] to logits of the same classes.
    """

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) float in [0, 1] -> logits (N, classes)."""
        return torch.stack([net(images).float() for net in self.nets]).mean(dim=0)


class Ensemble(nn.Module):
    """Further frozen classifiers that the payload is trained for, and variation of the input of each.

    They stay in evaluation mode and get no gradient.

    Source: Liu et al. 2017, "Delving into transferable adversarial examples", section 5 (an ensemble); that its
    losses are averaged, and not its probabilities, is from Dong et al. 2018, section 3.3.

    Args:
        nets: with each its normalisation from [0, 1]; normalised images to logits of the same classes.
        diversity: how often a classifier's input is varied in training, in [0, 1]; see `vary`.
        noise: standard deviation of the Gaussian noise in its input in training, on the [0, 1] scale: a payload that
            survives it does not depend on fine patterns, which are specific to one classifier (Wu and Zhu 2020,
            section 3).
        bfloat16: compute them so; see `sfumato.lab.models.precision`.
    """

    def __init__(
        self,
        nets: Iterable[tuple[Normalize, nn.Module]] = (),
        *,
        diversity: float = 0.0,
        noise: float = 0.0,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(*pair) for pair in nets).requires_grad_(False).eval()
        self.diversity = diversity
        self.noise = noise
        self.in_bfloat16 = bfloat16

    def __len__(self) -> int:
        return len(self.nets)

    def train(self, mode: bool = True) -> Ensemble:
        """Set whether inputs are varied; the classifiers stay in evaluation mode."""
        super().train(mode)
        self.nets.eval()
        return self

    def varied(self, images: Tensor) -> Tensor:
        """Return images (N, 3, H, W) float as one classifier's input; unchanged in evaluation mode."""
        if not self.training:
            return images
        seen = vary(images, share=self.diversity) if self.diversity else images
        return seen + self.noise * torch.randn_like(seen) if self.noise else seen

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) float in [0, 1] -> the logits (N, classes) of each classifier."""
        return [compute(net, self.varied(images), bfloat16=self.in_bfloat16) for net in self.nets]
