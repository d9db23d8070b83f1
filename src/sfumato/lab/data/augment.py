"""Augmentation of whole batches: flips, crops, cutout and mixup, without a loop over images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_ASPECTS = 3 / 4, 4 / 3
_TRIES = 10
"""Crops sampled for each image; the first that lies within it is taken."""


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a training batch.

    Attributes:
        flip: mirror each image left to right with probability 1/2.
        crop_padding: shift each image by up to this many pixels in each direction, edges reflected.
        zoom: the least share of an image's area that a crop shows, resized to the whole; None for no such crops.
        cutout: side in pixels of a square that is painted grey in each image; 0 for none.
    """

    flip: bool = True
    crop_padding: int = 0
    zoom: float | None = None
    cutout: int = 0


class Changes(NamedTuple):
    """The changes that augmentation makes to each image of a batch, or of a whole set: sampled first, then applied.

    Attributes:
        plan: sides of what is cut, and by how much images are shifted at most.
        shifts: rows and columns of the padded image that come first, (2, N) int64; None for no shifts.
        boxes: the part of each image that is resized to the whole, see `random_boxes`; None for all of it.
        mirrored: which images are mirrored left to right, (N,) bool; None for none.
        squares: centres of the grey squares, see `random_squares`; None for no squares.
    """

    plan: Augmentation
    shifts: Tensor | None
    boxes: Tensor | None
    mirrored: Tensor | None
    squares: Tensor | None

    @classmethod
    def sample(
        cls, count: int, height: int, width: int, augmentation: Augmentation, generator: torch.Generator
    ) -> Changes:
        """Sample changes of so many images of that size; the generator is on the CPU, as the changes are."""
        pad, zoom = augmentation.crop_padding, augmentation.zoom
        shifts = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)[:, :, 0] if pad else None
        boxes = None
        if zoom is not None and zoom < 1:
            boxes = random_boxes(count, height, width, zoom, generator)
        mirrored = torch.rand(count, generator=generator) < 0.5 if augmentation.flip else None
        squares = random_squares(count, height, width, generator) if augmentation.cutout else None
        return cls(augmentation, shifts, boxes, mirrored, squares)

    def of(self, rows: Tensor) -> Changes:
        """Return the changes of the images in these rows, (n,) int64, in their order."""
        rows = rows.cpu()
        return Changes(
            self.plan,
            None if self.shifts is None else self.shifts[:, rows],
            None if self.boxes is None else self.boxes[rows],
            None if self.mirrored is None else self.mirrored[rows],
            None if self.squares is None else self.squares[:, rows],
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images (N, 3, H, W), uint8 or floating-point in [0, 1], anywhere, with their changes."""
        if self.shifts is not None:
            images = _shifted(images, self.shifts, self.plan.crop_padding)
        if self.boxes is not None:
            images = resized_crops(images, self.boxes)
        if self.mirrored is not None:
            images = torch.where(self.mirrored.to(images.device)[:, None, None, None], images.flip(3), images)
        if self.squares is not None:
            images = cut_out(images, self.plan.cutout, self.squares)
        return images


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Flip, crop and cut each image of a batch (N, 3, H, W) at random, uint8 or floating-point in [0, 1].

    The generator is on the CPU; the same state gives the same result anywhere.
    """
    count, _, height, width = images.shape
    return Changes.sample(count, height, width, augmentation, generator)(images)


def shrink(images: Tensor, share: float) -> Tensor:
    """Scale images (N, 3, H, W), floating-point in [0, 1], to a share of both sides."""
    size = [max(1, round(side * share)) for side in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def random_squares(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Sample the centres of squares, uniform over an image's pixels: rows and columns, (2, count) int64."""
    return torch.stack([torch.randint(size, (count,), generator=generator) for size in (height, width)])


def cut_out(images: Tensor, side: int, centres: Tensor) -> Tensor:
    """Paint a square grey in each image (N, 3, H, W), uint8 or floating-point in [0, 1].

    The centres are (2, N), see `random_squares`; a part of a square may lie outside.

    Source: DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with cutout", section
    3.2; mid-grey in place of the data's mean.
    """
    inside = []
    for size, places in zip(images.shape[2:], centres, strict=True):
        starts, pixels = places[:, None] - side // 2, torch.arange(size)
        inside.append((pixels >= starts) & (pixels < starts + side))
    cut = (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(images.device)
    return images.masked_fill(cut, 0.5 if images.is_floating_point() else 128)


class Mixup(NamedTuple):
    """Convex combinations of the rows of a batch with other ones of it: of images, and likewise of their labels.

    Source: Zhang et al. 2018, "mixup: Beyond empirical risk minimization", section 2.

    Attributes:
        partners: the row that each is mixed with, (N,) int64.
        shares: the share of each row itself, (N,) float32 in [0.5, 1].
    """

    partners: Tensor
    shares: Tensor

    @classmethod
    def sample(cls, count: int, alpha: float, *, whole: int = 0) -> Mixup:
        """Sample the partners and, as the larger part of a symmetric beta distribution, the shares.

        Uses torch's own generator.

        Args:
            count: rows of the batch.
            alpha: both parameters of the distribution, above 0; 1 is uniform, less mixes less.
            whole: the first so many rows stay as they are.
        """
        shares = torch.distributions.Beta(alpha, alpha).sample((count,))
        shares = torch.maximum(shares, 1 - shares)  # both orders of a pair are equally likely
        shares[:whole] = 1
        return cls(torch.randperm(count), shares)

    def __call__(self, rows: Tensor) -> Tensor:
        """(N, ...) floating-point -> the combinations, the same shape."""
        shares = self.shares.to(rows).view(-1, *[1] * (rows.ndim - 1))
        return rows[self.partners.to(rows.device)].lerp(rows, shares)


def random_boxes(count: int, height: int, width: int, least: float, generator: torch.Generator) -> Tensor:
    """Sample boxes within an image: the share of its area is uniform in [least, 1], and so is the aspect's logarithm.

    Boxes that do not fit are sampled again, so that those left are somewhat smaller on average.

    Returns:
        (count, 4) float32: top, left, height and width in pixels; aspects (width / height) within 3/4 and 4/3. If the
        image is so long that none of the sampled boxes fits, the last one, cut to fit it.

    Source: Szegedy et al. 2015, section 6, which samples 8 to 100 % of the area and aspects between 3/4 and 4/3.
    """
    shares, aspects = torch.rand(2, count, _TRIES, generator=generator)
    areas = height * width * (least + (1 - least) * shares)
    low, high = (math.log(aspect) for aspect in _ASPECTS)
    aspects = torch.exp(low + (high - low) * aspects)
    sides = torch.stack([(areas / aspects).sqrt(), (areas * aspects).sqrt()], dim=2)  # (N, tries, 2)
    whole = torch.tensor([height, width], dtype=torch.float32)
    fits = (sides <= whole).all(dim=2)
    fits[:, -1] = True
    chosen = fits.int().argmax(dim=1)  # the first of several
    sides = sides[torch.arange(count), chosen].minimum(whole)
    corners = torch.rand(count, 2, generator=generator) * (whole - sides)
    return torch.cat([corners, sides], dim=1)


def resized_crops(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut a box out of each image (N, 3, H, W) of any dtype and resize it bilinearly to the image's size.

    The boxes are (N, 4): top, left, height and width in pixels, within the image.
    """
    height, width = images.shape[2:]
    boxes = boxes.to(images.device)
    rows = _positions(boxes[:, 0], boxes[:, 2], height)[:, :, None].expand(-1, -1, width)
    columns = _positions(boxes[:, 1], boxes[:, 3], width)[:, None, :].expand(-1, height, -1)
    grid = torch.stack([columns, rows], dim=3)  # (N, H, W, 2), x before y
    found = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.to(images.dtype) if images.is_floating_point() else found.round_().to(images.dtype)


def _shifted(images: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """Pad images with their reflection, and cut them out at these rows and columns, (2, N)."""
    height, width = images.shape[2:]
    shifts = shifts.to(images.device)[:, :, None]
    rows = shifts[0] + torch.arange(height, device=images.device)
    columns = shifts[1] + torch.arange(width, device=images.device)
    padded = F.pad(images.float(), (pad, pad, pad, pad), mode="reflect").to(images.dtype)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    # Indices around a slice put the channel last; permute it back.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _positions(starts: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Return where a box's samples lie along a side, (N, size), as `grid_sample` counts: the side is [-1, 1]."""
    centres = (torch.arange(size, device=starts.device) + 0.5) / size
    return 2 * (starts[:, None] + lengths[:, None] * centres) / size - 1
