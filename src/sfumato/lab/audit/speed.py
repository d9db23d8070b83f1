"""Estimates how long an audit will take on this machine, from a few measured steps."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from sfumato.lab.attacks.fit import BATCH
from sfumato.lab.audit.budget import Budget
from sfumato.lab.models import autocast
from sfumato.lab.models.decoders import ResidualNet

_STEPS = 3
_SIDE = 32
_REST = 1.6
"""The rest of an audit (pairs, measures, sanity checks) over the training of its decoders, as measured."""


def estimate_minutes(
    budget: Budget, device: torch.device | None = None, *, size: Sequence[int] = (_SIDE, _SIDE)
) -> str:
    """Return words such as "6 minutes", from the speed of the strongest decoder's first steps.

    Args:
        budget: the audit's.
        device: that attackers are trained on.
        size: rows and columns of the images; the time grows with their number of pixels.
    """
    images = budget.images + budget.identification_images + budget.attribute_images
    return spoken(decoder_seconds(device) * images * size[0] * size[1] / _SIDE**2)


def decoder_seconds(device: torch.device | None = None) -> float:
    """Return the seconds that the strongest decoder takes for a training image, with its share of the rest of an audit.

    Args:
        device: that attackers are trained on; images of 32x32.
    """
    device = device or torch.device("cpu")
    net, images = ResidualNet(6).to(device), torch.rand(BATCH, 6, _SIDE, _SIDE, device=device)
    optimizer = torch.optim.Adam(net.parameters())
    for step in range(_STEPS + 1):
        if step == 1:
            started = time.monotonic()
        with autocast(device):
            loss = net(images).square().mean()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    per_image_s = (time.monotonic() - started) / (_STEPS * BATCH)
    return per_image_s * _REST


def spoken(seconds: float) -> str:
    """Return words such as "40 seconds", "6 minutes" or "3 hours"."""
    if seconds < 90:
        return f"{max(10, round(seconds / 10) * 10)} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:.0f} hours"
