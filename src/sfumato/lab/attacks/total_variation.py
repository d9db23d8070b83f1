"""Inversion by optimisation: the smoothest image whose payload is the observed one.

Source: Mahendran and Vedaldi 2015, section 3; against split inference He et al. 2019, section 4 ("white-box").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.linear import solve
from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared, Reconstruct
from sfumato.lab.attacks.target import Noisy
from sfumato.lab.attacks.threat_models import Knowledge, Threat, UnavailableError

WEIGHTS = (0.0, 1e-2, 1e-1)
"""Of the total variation, against a misfit that is 1 for an image that explains nothing."""
ANCHORS = (0.0, 1.0, 10.0, 100.0)
"""Of the mean squared distance to the start: what the payload leaves open stays as it was."""
_LEARNING_RATE = 0.02
_BATCH = 100
_HELD_OUT = 32


class TotalVariation(Attacker):
    """Adam on the image itself, from where least squares ends; the weights are chosen on pairs of the attacker's own.

    `argmin_x |f(x) - observed|^2 / variance(observed) + weight * TV(x) + anchor * |x - start|^2`, x in [0, 1].
    """

    name = "total variation"
    threats = frozenset({Threat.WHITE_BOX, Threat.CLOUD})
    learns = False
    needs_gradients = True
    test_images = 200

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`."""
        known = inversion(knowledge, self.name, budget.seed)

        def reconstruct(observed: Tensor, weight: float, anchor: float, steps: int) -> Tensor:
            parts = torch.split(observed, _BATCH)
            return torch.cat([descend(known, part, weight=weight, anchor=anchor, steps=steps) for part in parts])

        def error(weight: float, anchor: float) -> float:
            guess = reconstruct(known.observed, weight, anchor, max(1, budget.steps // 4))
            return float((guess - known.images).square().mean())

        weight = min(WEIGHTS, key=lambda weight: error(weight, 0.0))
        anchor = min(ANCHORS, key=lambda anchor: error(weight, anchor))
        return Prepared(lambda observed: reconstruct(observed, weight, anchor, budget.steps))


@dataclass(frozen=True)
class Inversion:
    """What an attacker that optimises the image needs.

    Attributes:
        forward: the obfuscator, images (N, 3, H, W) float32 in [0, 1] -> (N, C, H', W') float32, with gradients; the
            mean of a stochastic one that states its noise.
        start: the payload -> the image to start from: by least squares or the mean image, whichever is nearer to a few
            images held out.
        images: (K, 3, H, W) float32 in [0, 1], held out.
        observed: the payload for them.
        variance: of `observed`.
    """

    forward: Callable[[Tensor], Tensor]
    start: Reconstruct
    images: Tensor
    observed: Tensor
    variance: float

    def misfit(self, images: Tensor, observed: Tensor) -> Tensor:
        """Return how far the payload for images is from what is observed: mean squared error over variance, (N,).

        Channels of `observed` after those of `forward` are not compared.

        Raises:
            UnavailableError: no gradient comes through `forward`.
        """
        payload = self.forward(images)
        if not payload.requires_grad:
            raise UnavailableError(
                "no gradient comes through the obfuscator; give a module that does not switch gradients off"
            )
        apart = (payload - observed[:, : payload.shape[1]]).square()
        return apart.flatten(1).mean(dim=1) / max(self.variance, 1e-12)


@torch.no_grad()
def inversion(knowledge: Knowledge, name: str, seed: int) -> Inversion:
    """Prepare the attack of an attacker of this name; the seed is of the choice of images.

    Raises:
        AuditError: there are no gradients or fewer than 3 pairs.
    """
    module, pairs = knowledge.module, knowledge.pairs
    if module is None:
        raise AuditError(f"{name} needs the obfuscator with gradients; only the payload is known")
    if pairs is None or len(pairs) < 3:
        raise AuditError(f"{name} needs at least 3 images of its own to choose its settings on")
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    held = min(_HELD_OUT, max(1, len(pairs) // 5))
    images, observed = pairs.batch(order[:held], torch.Generator().manual_seed(seed + 1))
    estimate, _ = solve(pairs, seed=seed, among=order[held:])

    def linear(observed: Tensor) -> Tensor:
        return estimate(observed).clamp(0, 1)  # type: ignore[no-any-return]

    nearer = (linear(observed) - images).square().mean() < (estimate.base - images).square().mean()
    start = linear if nearer else lambda observed: estimate.base.repeat(len(observed), 1, 1, 1)
    forward = module.mean if isinstance(module, Noisy) else module
    return Inversion(forward, start, images, observed, float(observed.var()))


def descend(known: Inversion, observed: Tensor, *, weight: float, anchor: float, steps: int) -> Tensor:
    """Return the images (N, 3, H, W) float32 in [0, 1] that fit payloads (N, C, H', W') float32 best.

    Args:
        known: the obfuscator and the start.
        observed: the payloads.
        weight: of the total variation.
        anchor: of the mean squared distance to the start.
        steps: of Adam; the images are clamped after each.

    Raises:
        UnavailableError: no gradient comes through the obfuscator.
    """
    start = known.start(observed)
    images = start.detach().clone().requires_grad_()

    def loss() -> Tensor:
        kept = anchor * (images - start).square().flatten(1).mean(dim=1)
        return (known.misfit(images, observed) + weight * total_variation(images) + kept).sum()

    for _ in minimise([images], loss, learning_rate=_LEARNING_RATE, steps=steps):
        images.clamp_(0, 1)
    return images.detach()


def minimise(
    parameters: list[Tensor], loss: Callable[[], Tensor], *, learning_rate: float, steps: int
) -> Iterator[None]:
    """Take steps of Adam, its rate falling along a cosine; yield after each, without gradients."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        with torch.no_grad():
            yield


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, both directions summed: (N, 3, H, W) -> (N,).

    Source: Rudin, Osher and Fatemi 1992, anisotropic.
    """
    rows = (images[:, :, 1:] - images[:, :, :-1]).abs().flatten(1).mean(dim=1)
    columns = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().flatten(1).mean(dim=1)
    return rows + columns
