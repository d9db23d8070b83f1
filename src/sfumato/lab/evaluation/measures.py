"""Measure how close reconstructed images come to the originals, and how certain a rate is: all figures of the audit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from sfumato.errors import AuditError

RECONSTRUCTED_BELOW = 1e-4
"""Mean squared error (40 dB) below which an image counts as reconstructed."""
SSIM_WINDOW = 11
"""Side in pixels of the window of structural similarity, and so the least side of an image."""


@dataclass(frozen=True)
class Figures:
    """The quality of a reconstruction, over all its images.

    Attributes:
        mse: mean squared error of pixels in [0, 1].
        psnr_db: of that error, in decibels; infinite where the error is 0.
        ssim: structural similarity, 1 for the original itself.
        images: how many were measured.
    """

    mse: float
    psnr_db: float
    ssim: float
    images: int


def measure(reconstructed: Tensor, originals: Tensor) -> Figures:
    """Measure reconstructed images, (N, 3, H, W) float in [0, 1], against the originals, (N, 3, H, W) uint8.

    Raises:
        AuditError: as for `per_image`, or sides of less than 11 pixels.
    """
    if min(originals.shape[2:]) < SSIM_WINDOW:
        raise AuditError(
            f"images of {originals.shape[2]} x {originals.shape[3]} are too small to measure: "
            f"structural similarity needs at least {SSIM_WINDOW} pixels on a side"
        )
    mse, ssim = per_image(reconstructed, originals)
    error = float(mse.double().mean())
    return Figures(error, psnr_db(error), float(ssim.double().mean()), len(mse))


def per_image(reconstructed: Tensor, originals: Tensor, *, batch: int = 50) -> tuple[Tensor, Tensor]:
    """Return each image's error and structural similarity.

    Structural similarity is averaged over the windows that lie entirely within the image, and over the colours.
    torchmetrics does so up to 1.8; later releases count windows that extend over the edge, too. Its map of all windows
    is therefore cropped here.

    Args:
        reconstructed: (N, 3, H, W) float in [0, 1].
        originals: (N, 3, H, W) uint8.
        batch: images at a time.

    Returns:
        Mean squared errors (N,) and similarities (N,), float32; the latter are NaN for images under 11 pixels on a
        side.

    Raises:
        AuditError: no images, images of different shapes, or numbers that are not finite or not in [0, 1].

    Source: Wang et al. 2004, section III.B: Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03.
    """
    check_reconstructed(reconstructed, originals)
    edge = SSIM_WINDOW // 2
    errors, similarities = [], []
    for start in range(0, len(originals), batch):
        images = originals[start : start + batch].float() / 255
        guess = reconstructed[start : start + batch].float()
        errors.append((guess - images).square().mean(dim=(1, 2, 3)))
        if min(images.shape[2:]) < SSIM_WINDOW:
            similarities.append(torch.full((len(images),), torch.nan))
            continue
        _, windows = structural_similarity_index_measure(guess, images, data_range=1.0, return_full_image=True)
        similarities.append(windows[..., edge:-edge, edge:-edge].mean(dim=(1, 2, 3)))
    return torch.cat(errors), torch.cat(similarities)


def psnr_db(mse: float) -> float:
    """Return the peak signal-to-noise ratio in decibels of a mean squared error of pixels in [0, 1]; infinite for 0."""
    return 10 * math.log10(1 / mse) if mse > 0 else math.inf


def excess_leakage(mse_best: float, mse_class_mean: float) -> float:
    """Return the share of the image that leaks beyond its label: 0 for none, 1 for all.

    Args:
        mse_best: mean squared error of the best attacker.
        mse_class_mean: mean squared error of the mean training image of the same class, on the same images.

    Raises:
        AuditError: an error that is negative or not finite, or a class mean without any.
    """
    if not (math.isfinite(mse_best) and mse_best >= 0 and math.isfinite(mse_class_mean) and mse_class_mean > 0):
        raise AuditError(
            f"an attack's error of {mse_best} against the class mean's {mse_class_mean}: "
            "the first must be 0 or more, the second more than 0"
        )
    return max(0.0, 1 - mse_best / mse_class_mean)


def retrieval_top1(scores: Tensor, truth: Tensor) -> float:
    """Return how often an image is re-identified among N candidates (top-1); chance is 1 / N.

    Candidates that share the highest score share the hit, so that the same score for all of them stays at chance.

    Args:
        scores: (Q, N) float, the similarity of each candidate to each query; higher is more similar.
        truth: (Q,) int64, the place of each query's original among the candidates.

    Raises:
        AuditError: shapes that do not fit, a place that is not among the candidates, or scores that are NaN.
    """
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or 0 in scores.shape:
        raise AuditError(
            f"scores of shape {tuple(scores.shape)} with truth of shape {tuple(truth.shape)}: need (Q, N), (Q,)"
        )
    if int(truth.min()) < 0 or int(truth.max()) >= scores.shape[1]:
        raise AuditError(
            f"originals must be among the {scores.shape[1]} candidates, got {int(truth.min())} to {int(truth.max())}"
        )
    if bool(scores.isnan().any()):
        raise AuditError("some scores are NaN: the attack that gave them is broken")
    first = scores == scores.max(dim=1, keepdim=True).values
    hit = first.gather(1, truth[:, None])[:, 0]
    return float((hit / first.sum(dim=1)).double().mean())


def proportion_interval(hits: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the bounds of a rate's confidence interval, given `hits`, maybe shared ones, in `n` trials.

    Raises:
        AuditError: no trials, hits outside [0, n], or a confidence outside (0, 1).

    Source: Wilson 1927.
    """
    if n < 1 or not 0 <= hits <= n or not 0 < confidence < 1:
        raise AuditError(f"{hits} hits in {n} trials at confidence {confidence}: no such interval")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, width = hits / n, z * z / n
    centre = rate + width / 2
    half = z * math.sqrt(rate * (1 - rate) / n + width / (4 * n))
    return max(0.0, (centre - half) / (1 + width)), min(1.0, (centre + half) / (1 + width))


def difference_interval(hits: int, n: int, other_hits: int, other_n: int) -> tuple[float, float]:
    """Return the bounds of the 95 % confidence interval of the difference of two independent rates, first less other.

    Raises:
        AuditError: as `proportion_interval`.

    Source: Newcombe 1998, method 10.
    """
    (low, high), (other_low, other_high) = proportion_interval(hits, n), proportion_interval(other_hits, other_n)
    rate, other = hits / n, other_hits / other_n
    difference = rate - other
    return difference - math.hypot(rate - low, other_high - other), difference + math.hypot(
        high - rate, other - other_low
    )


def check_reconstructed(reconstructed: Tensor, originals: Tensor) -> None:
    """Check that reconstructed images can be compared with the originals.

    Raises:
        AuditError: no images, images of different shapes, or numbers that are not finite or not in [0, 1].
    """
    if originals.ndim != 4 or originals.shape[1] != 3 or originals.dtype != torch.uint8 or not len(originals):
        raise AuditError(f"originals must be (N, 3, H, W) uint8, got {tuple(originals.shape)} {originals.dtype}")
    if reconstructed.shape != originals.shape or not reconstructed.is_floating_point():
        raise AuditError(
            f"reconstructed images are {tuple(reconstructed.shape)} {reconstructed.dtype}, "
            f"floats of {tuple(originals.shape)} are expected"
        )
    low, high = (float(bound) for bound in reconstructed.aminmax())
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise AuditError(f"reconstructed pixels must be finite and in [0, 1], got {low:.4g} to {high:.4g}")
