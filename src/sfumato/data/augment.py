"""Augmentation of whole batches: flips and shifted crops, on uint8, without a loop over pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training batch.

    Attributes:
        flip: mirror each picture left to right with probability 1/2.
        crop_padding: shift each picture by up to this many pixels in each direction, edges reflected.
    """

    flip: bool = True
    crop_padding: int = 0


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Flips and shifts each picture of a batch at random.

    Args:
        images: (N, 3, H, W), any dtype.
        augmentation: what to do.
        generator: the source of randomness, on the CPU; the same state gives the same result anywhere.

    Returns:
        (N, 3, H, W) of the same dtype.
    """
    count, _, height, width = images.shape
    if augmentation.crop_padding:
        pad = augmentation.crop_padding
        shifts = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator).to(images.device)
        rows = shifts[0] + torch.arange(height, device=images.device)
        columns = shifts[1] + torch.arange(width, device=images.device)
        padded = F.pad(images.float(), (pad, pad, pad, pad), mode="reflect").to(images.dtype)
        picture = torch.arange(count, device=images.device)[:, None, None]
        # Indices around a slice put the channel last; permute it back.
        images = padded[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if augmentation.flip:
        mirrored = (torch.rand(count, generator=generator) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images
