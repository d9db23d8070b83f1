"""Training-set extraction: are images that can be decoded from what is handed out those that it was trained on?

Anything smooth resembles some images. So training images are counted beside test images, which were never seen: more of
the former, as a share, is memory and not resemblance.

Source: Carlini et al. 2023 (Extracting Training Data from Diffusion Models), section 4, where the nearest training
image is compared with what would be expected by chance; correlation and the counts are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.measures import difference_interval
from sfumato.progress import Progress, silent

RECOGNISABLE_ABOVE = 0.9
"""Correlation of two images, each without its mean, above which a person recognises the one in the other."""
COPY_ABOVE = 0.99
"""Likewise, above which they are the same image but for noise."""
_LARGEST_SIDE = 64
"""In pixels; larger images are compared at this size."""
_CHUNK = 2_000


@dataclass(frozen=True)
class Extraction:
    """What one file of a bundle shows of the training images.

    Attributes:
        file: of the bundle.
        method: how images are decoded from it.
        decoded_images: how many different ones there are.
        train_images: how many they were compared with, as the next one.
        test_images: likewise.
        train_recognised: training images whose correlation with a decoded image is above 0.9.
        test_recognised: likewise, test images.
        train_copied: training images whose correlation with a decoded image is above 0.99.
        test_copied: likewise, test images.
        low: of the 95 % interval of the difference of the two shares that are recognised; above 0, it memorises.
        high: likewise.
        train_correlation: the highest of a training image with a decoded one.
        test_correlation: likewise, of a test image.
        train_mse: the lowest mean squared error of a training image to a decoded one, for pixels in [0, 1].
        test_mse: likewise, of a test image.
    """

    file: str
    method: str
    decoded_images: int
    train_images: int
    test_images: int
    train_recognised: int
    test_recognised: int
    train_copied: int
    test_copied: int
    low: float
    high: float
    train_correlation: float
    test_correlation: float
    train_mse: float
    test_mse: float


@dataclass(frozen=True)
class _Nearest:
    recognised: int
    copied: int
    correlation: float
    mse: float


def extract(
    file: str, method: str, decoded: Tensor, train: ImageSet, test: ImageSet, *, progress: Progress = silent
) -> Extraction:
    """Compare decoded images, (M, 3, H, W) float32 in [0, 1], with the nearest training and test images."""
    decoded = comparable(decoded)
    decoded = torch.unique((decoded * 255).round().flatten(1), dim=0) / 255
    seen, unseen = (_nearest(decoded, images.images, f"extraction: {file}", progress) for images in (train, test))
    low, high = difference_interval(seen.recognised, len(train), unseen.recognised, len(test))
    return Extraction(
        file=file,
        method=method,
        decoded_images=len(decoded),
        train_images=len(train),
        test_images=len(test),
        train_recognised=seen.recognised,
        test_recognised=unseen.recognised,
        train_copied=seen.copied,
        test_copied=unseen.copied,
        low=low,
        high=high,
        train_correlation=seen.correlation,
        test_correlation=unseen.correlation,
        train_mse=seen.mse,
        test_mse=unseen.mse,
    )


def memorises(row: Extraction) -> bool:
    """Whether training images are clearly recognised more often than test images, or copied as no test image is."""
    return row.low > 0 or row.train_copied > row.test_copied == 0


def _nearest(decoded: Tensor, images: Tensor, stage: str, progress: Progress) -> _Nearest:
    """Compare decoded images, (M, D) float32, with images (N, 3, H, W) uint8."""
    known, squares = _units(decoded), decoded.square().sum(dim=1)
    correlations, errors = [], []
    for place, part in enumerate(images.split(_CHUNK)):  # type: ignore[no-untyped-call]
        progress(stage, place * _CHUNK, len(images))
        flat = comparable(part.float() / 255).flatten(1)
        correlations.append((_units(flat) @ known.T).amax(dim=1))
        apart = squares + flat.square().sum(dim=1, keepdim=True) - 2 * flat @ decoded.T
        errors.append(apart.amin().clamp_min(0) / flat.shape[1])
    progress(stage, len(images), len(images))
    best = torch.cat(correlations)
    recognised, copied = (int((best > least).sum()) for least in (RECOGNISABLE_ABOVE, COPY_ABOVE))
    return _Nearest(recognised, copied, float(best.max()), float(torch.stack(errors).min()))


def comparable(images: Tensor) -> Tensor:
    """Return images (N, 3, H, W) float32 at the size that they are compared at: 64 pixels at most on a side."""
    sides = images.shape[2:]
    if max(sides) <= _LARGEST_SIDE:
        return images
    scale = _LARGEST_SIDE / max(sides)
    return F.interpolate(images, size=[max(1, round(side * scale)) for side in sides], mode="area")


def _units(flat: Tensor) -> Tensor:
    """Each row without its mean, of length 1; zeros where all its numbers are equal."""
    centred = flat - flat.mean(dim=1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-3, centred / length.clamp_min(1e-3), 0.0)
