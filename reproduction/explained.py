"""Explained variance: what an obfuscated image still reveals of the image's mean colour and coarse layout.

The paper says of its obfuscated images that "there is still information on the background color and the location
of the object"; this measures how much.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reproduction.schema import ExplainedVariance
from sfumato.errors import AuditError
from sfumato.lab.attacks.linear import solve
from sfumato.lab.attacks.threat_models import Pairs

BLOCKS = 4
"""Blocks per side of the grid whose mean colours describe the layout."""


def explained_variance(estimate: Tensor, images: Tensor) -> ExplainedVariance:
    """Return the share of the images' colour and layout that an estimate of them explains.

    Args:
        estimate: (N, 3, H, W) float, of the images; not bounded.
        images: (N, 3, H, W) float in [0, 1], at least 2 that differ; sides are multiples of 4.

    Returns:
        For each of the two, `1 - sum (y - estimate)^2 / sum (y - mean y)^2`, the mean taken over the images.

    Raises:
        AuditError: shapes differ or do not fit, or the images do not vary.
    """
    if estimate.shape != images.shape or len(images) < 2 or any(side % BLOCKS for side in images.shape[2:]):
        raise AuditError(
            f"estimate {tuple(estimate.shape)} and images {tuple(images.shape)} must be of one shape, at least 2, "
            f"with sides that are multiples of {BLOCKS}"
        )
    colour, layout = (_share(mine, truth) for mine, truth in zip(_parts(estimate), _parts(images), strict=True))
    return ExplainedVariance(mean_colour=colour, layout=layout)


def least_squares_estimate(pairs: Pairs, observed: Tensor, *, seed: int = 0) -> Tensor:
    """Return the least-squares estimate of images; it is the best linear one of their block means as well.

    Args:
        pairs: of training images.
        observed: (N, C, H', W') float32, the payload of other images.
        seed: selects the pairs.

    Returns:
        (N, 3, H, W) float32, not bounded.
    """
    estimate, _ = solve(pairs, seed=seed)
    with torch.no_grad():
        parts = [estimate(part) for part in observed.split(250)]  # type: ignore[no-untyped-call]
    return torch.cat(parts)


def _parts(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, 3) mean colours and (N, 48) differences of the blocks from them."""
    colour = images.double().mean(dim=(2, 3))
    blocks = F.adaptive_avg_pool2d(images.double(), BLOCKS)
    return colour, (blocks - colour[:, :, None, None]).flatten(1)


def _share(estimate: Tensor, truth: Tensor) -> float:
    spread = float((truth - truth.mean(dim=0)).square().sum())
    if spread < 1e-12 * truth.numel():
        raise AuditError("the images do not vary: there is nothing to explain")
    return 1 - float((truth - estimate).square().sum()) / spread
