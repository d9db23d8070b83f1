"""What an obfuscated image still shows: the image's mean colour, and how its colours lie around it.

The paper says of its obfuscated images that "there is still information on the background color and the location
of the object"; this puts numbers to that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import AuditError
from sfumato.lab.attacks.linear import solve
from sfumato.lab.attacks.threat_models import Pairs

BLOCKS = 4
"""On a side, in the grid of blocks whose mean colours tell where things are."""


@dataclass(frozen=True)
class Remains:
    """Shares of variance that are explained, at most 1; 0 is what the mean over the images explains.

    Attributes:
        mean_colour: of the image's mean colour, 3 numbers.
        layout: of the blocks' mean colours minus the image's mean colour, 48 numbers.
    """

    mean_colour: float
    layout: float


def remains(guess: Tensor, images: Tensor) -> Remains:
    """Which share of the images' colour and layout a guess of them explains.

    Args:
        guess: (N, 3, H, W) float, of the images; not bounded.
        images: (N, 3, H, W) float in [0, 1], at least 2 and not all alike; sides are multiples of 4.

    Returns:
        For each of the two, `1 - sum (y - guess)^2 / sum (y - mean y)^2`, the mean over the images.

    Raises:
        AuditError: shapes that differ or do not fit, or images that do not vary.
    """
    if guess.shape != images.shape or len(images) < 2 or any(side % BLOCKS for side in images.shape[2:]):
        raise AuditError(
            f"guess {tuple(guess.shape)} and images {tuple(images.shape)} must be of one shape, at least 2, with "
            f"sides that are multiples of {BLOCKS}"
        )
    found = [_share(mine, truth) for mine, truth in zip(_parts(guess), _parts(images), strict=True)]
    return Remains(*found)


def least_squares_guess(pairs: Pairs, observed: Tensor, *, seed: int = 0) -> Tensor:
    """What least squares makes of the payload; as block means are linear, it is their best linear guess as well.

    Args:
        pairs: of training images.
        observed: (N, C, H', W') float32, the payload for others.
        seed: of which pairs are used.

    Returns:
        (N, 3, H, W) float32, not bounded.
    """
    estimate, _ = solve(pairs, seed=seed)
    with torch.no_grad():
        parts = [estimate(part) for part in observed.split(250)]  # type: ignore[no-untyped-call]
    return torch.cat(parts)


def _parts(images: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 3) mean colours and (N, 48) differences of the blocks from them."""
    colour = images.double().mean(dim=(2, 3))
    blocks = F.adaptive_avg_pool2d(images.double(), BLOCKS)
    return colour, (blocks - colour[:, :, None, None]).flatten(1)


def _share(guess: Tensor, truth: Tensor) -> float:
    spread = float((truth - truth.mean(dim=0)).square().sum())
    if spread < 1e-12 * truth.numel():
        raise AuditError("the images do not vary: there is nothing to explain")
    return 1 - float((truth - guess).square().sum()) / spread
