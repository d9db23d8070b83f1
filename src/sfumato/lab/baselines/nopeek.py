"""Distance correlation as a penalty."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.lab.baselines.fit import Encoded, Loss
from sfumato.lab.baselines.method import Training


class NoPeek(Encoded):
    """An encoder with cross-entropy plus a weight times the distance correlation of images and payloads.

    Source: Vepakomma et al. 2020.
    """

    summary = "an encoder whose output has little distance correlation with the image"
    source = "Vepakomma et al. 2020"
    strength_help = "the weight of the distance correlation relative to the cross-entropy"
    default = 0.5

    def objective(self, training: Training) -> tuple[Loss, list[nn.Module]]:
        """See `Encoded`."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            obfuscated = self(images)
            penalty = distance_correlation(images, obfuscated)
            return training.classification_loss(obfuscated, labels) + self.weight * penalty

        return loss, []


def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Return the sample distance correlation of two sets of vectors, paired; differentiable.

    Source: Szekely, Rizzo and Bakirov 2007 (empirical distance correlation).

    Args:
        x: (N, ...) float, N at least 2.
        y: (N, ...) float.

    Returns:
        scalar in [0, 1]; 0 for a constant x or y.
    """
    a, b = _centred_distances(x), _centred_distances(y)
    covariance = (a * b).mean().clamp_min(0)
    variances = a.square().mean() * b.square().mean()
    return (covariance / variances.sqrt().clamp_min(1e-12) + 1e-12).sqrt()


def _centred_distances(x: Tensor) -> Tensor:
    """Return distances (N, N), whose rows and columns sum to 0, of (N, ...)."""
    flat = x.flatten(1).float()
    # Not by a matrix product: it cancels where two points are close.
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()
