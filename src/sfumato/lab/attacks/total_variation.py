"""Inversion by optimisation: the smoothest image whose payload is the observed one.

Source: Mahendran and Vedaldi 2015, section 3; against split inference He et al. 2019, section 4 ("white-box").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfumato.errors import AuditError
from sfumato.lab.attacks.linear import solve
from sfumato.lab.attacks.protocol import AttackBudget, Prepared, Reconstruct
from sfumato.lab.attacks.target import Noisy
from sfumato.lab.attacks.threat_models import Knowledge, Pairs, Threat

WEIGHTS = (0.0, 1e-2, 1e-1)
"""Of the total variation, against a misfit that is 1 for an image that explains nothing."""
ANCHORS = (0.0, 1.0, 10.0, 100.0)
"""Of the mean squared distance to the start: what the payload leaves open stays as it was."""
_LEARNING_RATE = 0.02
_BATCH = 100
_HELD_OUT = 32


@dataclass(frozen=True)
class TotalVariation:
    """Adam on the image itself, from where least squares ends; the weights are chosen on pairs of the attacker's own.

    `argmin_x |f(x) - observed|^2 / variance(observed) + weight * TV(x) + anchor * |x - start|^2`, x in [0, 1].
    """

    name: ClassVar[str] = "total variation"
    threats: ClassVar[frozenset[Threat]] = frozenset({Threat.WHITE_BOX, Threat.CLOUD})
    learns: ClassVar[bool] = False
    test_images: ClassVar[int] = 200

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`."""
        forward, pairs = differentiable(knowledge, self.name)
        start, images, observed = beginning(pairs, budget.seed)
        variance = float(observed.var())

        def reconstruct(observed: Tensor, weight: float, anchor: float, steps: int) -> Tensor:
            parts = [
                descend(forward, part, start(part), variance=variance, weight=weight, anchor=anchor, steps=steps)
                for part in torch.split(observed, _BATCH)
            ]
            return torch.cat(parts)

        def error(weight: float, anchor: float) -> float:
            guess = reconstruct(observed, weight, anchor, max(1, budget.steps // 4))
            return float((guess - images).square().mean())

        weight = min(WEIGHTS, key=lambda weight: error(weight, 0.0))
        anchor = min(ANCHORS, key=lambda anchor: error(weight, anchor))
        return Prepared(lambda observed: reconstruct(observed, weight, anchor, budget.steps))


def differentiable(knowledge: Knowledge, name: str) -> tuple[Callable[[Tensor], Tensor], Pairs]:
    """Return the obfuscator with gradients, and the attacker's pairs.

    Of a stochastic obfuscator that states its noise it is the mean.

    Args:
        knowledge: what the attacker knows.
        name: of the attacker, for the message.

    Returns:
        Images (N, 3, H, W) float32 in [0, 1] -> (N, C, H', W') float32, and the pairs.

    Raises:
        AuditError: there are no gradients or fewer than 3 pairs.
    """
    if knowledge.module is None:
        raise AuditError(f"{name} needs the obfuscator with gradients; only the payload is known")
    if knowledge.pairs is None or len(knowledge.pairs) < 3:
        raise AuditError(f"{name} needs at least 3 images of its own to choose its settings on")
    module: nn.Module = knowledge.module
    return (module.mean if isinstance(module, Noisy) else module), knowledge.pairs


@torch.no_grad()
def beginning(pairs: Pairs, seed: int) -> tuple[Reconstruct, Tensor, Tensor]:
    """Return where to start: least squares or the mean image, whichever is nearer to a few images held out.

    Args:
        pairs: at least 3.
        seed: of the choice of images.

    Returns:
        The start, and the pairs held out: (N, 3, H, W) float32 in [0, 1] and the payload for them.
    """
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    held = min(_HELD_OUT, max(1, len(pairs) // 5))
    images, observed = pairs.batch(order[:held], torch.Generator().manual_seed(seed + 1))
    estimate, _ = solve(_Part(pairs, order[held:]), seed=seed)
    mean = estimate.base
    error = (estimate(observed).clamp(0, 1) - images).square().mean()
    if error < (mean - images).square().mean():
        return lambda observed: estimate(observed).clamp(0, 1), images, observed
    return lambda observed: mean.repeat(len(observed), 1, 1, 1), images, observed


def descend(
    forward: Callable[[Tensor], Tensor],
    observed: Tensor,
    start: Tensor,
    *,
    variance: float,
    weight: float,
    anchor: float,
    steps: int,
) -> Tensor:
    """Adam on images, its rate falling along a cosine, the images clamped after each step.

    Args:
        forward: see `differentiable`.
        observed: (N, C, H', W') float32; channels after those of `forward` are not used.
        start: (N, 3, H, W) float32 in [0, 1].
        variance: of the payload.
        weight: of the total variation.
        anchor: of the mean squared distance to the start.
        steps: of Adam.

    Returns:
        (N, 3, H, W) float32 in [0, 1].

    Raises:
        AuditError: no gradient comes through `forward`.
    """
    images = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=_LEARNING_RATE)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            kept = anchor * (images - start).square().flatten(1).mean(dim=1)
            loss = (misfit(forward(images), observed, variance) + weight * total_variation(images) + kept).sum()
            (images.grad,) = torch.autograd.grad(loss, images)
            optimizer.step()
            with torch.no_grad():
                images.clamp_(0, 1)
    return images.detach()


def misfit(payload: Tensor, observed: Tensor, variance: float) -> Tensor:
    """Return the mean squared difference over the variance, for each image.

    Args:
        payload: (N, C, H', W') float32, with gradients.
        observed: (N, C or more, H', W') float32; further channels are not compared.
        variance: of the payload.

    Returns:
        (N,) float32.

    Raises:
        AuditError: `payload` carries no gradient.
    """
    if not payload.requires_grad:
        raise AuditError("no gradient comes through the obfuscator; give a module that does not switch gradients off")
    return (payload - observed[:, : payload.shape[1]]).square().flatten(1).mean(dim=1) / max(variance, 1e-12)


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, both directions summed: (N, 3, H, W) -> (N,).

    Source: Rudin, Osher and Fatemi 1992, anisotropic.
    """
    rows = (images[:, :, 1:] - images[:, :, :-1]).abs().flatten(1).mean(dim=1)
    columns = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().flatten(1).mean(dim=1)
    return rows + columns


@dataclass(frozen=True)
class _Part:
    """Some of the pairs."""

    pairs: Pairs
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.pairs.batch(self.indices[indices], generator)
