"""Score-only gradients: which way to change a drawing, learned from nothing but what it is answered.

What is asked about are drawings, one for each code. The answer to the drawing of a code is the answer for every image
with that code, so that the images' own variance, which stochastic gradients usually have, is not there at all; what
is left is the variance of the directions that are tried.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import QueryBudgetExhausted
from sfumato.lab.models import Sketcher
from sfumato.lab.training.blackbox.oracle import Oracle

_STEP = 0.05
"""How far the drawings are moved to see what changes: the root mean square over their numbers."""
_PRIOR = 0.5
"""The share of a direction that is the surrogate's gradient, in the square."""
_COARSE = 8
"""Side of the random part of a direction, which is smooth: what classifiers answer to is mostly coarse."""
_LEARNING_RATE = 1e-3
_COPIES, _NOISE = 4, 0.1
"""Of an endpoint that gives labels alone: noisy copies of a drawing that are asked about, and the noise in them."""
_MOST_CODES = 64
"""Drawings that a step is taken for: those that are answered worst."""


def score_gradient(loss: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor, *, step: float) -> Tensor:
    """The gradient's part in given directions, from values alone.

    `mean over u of (L(x + s u) - L(x - s u)) / (2 s) u`, which for directions of unit covariance is the gradient of a
    smoothed L on average.

    Source: Nesterov and Spokoiny 2017, equation 30, in its two-sided form.

    Args:
        loss: (N, ...) float -> (N,) float.
        x: (N, ...) float.
        directions: (M, N, ...) float.
        step: s, above 0.

    Returns:
        (N, ...) float.
    """
    total = torch.zeros_like(x)
    for u in directions:
        slope = (loss(x + step * u) - loss(x - step * u)) / (2 * step)
        total += slope.view(-1, *[1] * (x.ndim - 1)) * u
    return total / len(directions)


def guided_directions(prior: Tensor, *, share: float, coarse: int, generator: torch.Generator) -> Tensor:
    """A random direction for each drawing that leans towards where a surrogate would go.

    Source: Cheng et al. 2019, "Improving black-box adversarial attacks with a transfer-based prior", equation 8, with
    a fixed share in place of their estimate of the best one.

    Args:
        prior: (N, C, H, W) float, the surrogate's gradients; where one is 0, the direction is random alone.
        share: of the prior in the direction, in the square, in [0, 1].
        coarse: side of the random part before it is made as large as the drawing.
        generator: on the CPU.

    Returns:
        (N, C, H, W) float of root mean square 1 for each drawing.
    """
    unit, known = _smooth(prior.shape, coarse, generator), _unit(prior)
    across = _unit(unit - (unit * known).mean(dim=(1, 2, 3), keepdim=True) * known)
    has_prior = (known.abs().amax(dim=(1, 2, 3), keepdim=True) > 0).float()
    share_here = share * has_prior
    return _unit(share_here.sqrt() * known + (1 - share_here).sqrt() * across)


def _smooth(shape: torch.Size, side: int, generator: torch.Generator) -> Tensor:
    """Coarse noise of root mean square 1 for each drawing."""
    noise = torch.randn(*shape[:2], side, side, generator=generator)
    return _unit(F.interpolate(noise, size=shape[2:], mode="bilinear", align_corners=False))


def _unit(x: Tensor) -> Tensor:
    size = x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return torch.where(size > 0, x / size.clamp_min(1e-12), torch.zeros_like(x))


@dataclass(frozen=True)
class Tuned:
    """What became of the drawings at the endpoint.

    Attributes:
        right_before: the share of the images whose code's drawing was answered as the device answers.
        right_after: likewise, at the end.
        queries: that it took.
        steps: of the optimiser.
    """

    right_before: float
    right_after: float
    queries: int
    steps: int


def tune(
    sketcher: Sketcher,
    oracle: Oracle,
    surrogate: nn.Module,
    codes: Tensor,
    weights: Tensor,
    *,
    queries: int,
    seed: int,
    shown: Callable[[int], None] = lambda done: None,
) -> Tuned:
    """Changes what is drawn until the endpoint answers as the device does; keeps the best drawings.

    Args:
        sketcher: trained on surrogates; its drawing part is changed in place, how it looks is not.
        oracle: the endpoint.
        surrogate: images in [0, 1] to logits, for the directions.
        codes: (K, classes + learned bits) float32, as `Sketcher.look` gives them, each once.
        weights: (K,) float, the share of the images with that code; sum 1.
        queries: how many drawings may be asked about.
        seed: of the directions.
        shown: is told how many queries more are done.
    """
    sketcher.eval()
    targets = codes[:, : sketcher.classes].argmax(dim=1)
    drawing_parts = [*sketcher.from_code.parameters(), *sketcher.draw.parameters()]
    optimizer = torch.optim.Adam(drawing_parts, lr=_LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    begun, steps = oracle.spent, 0

    copies = 1 if oracle.answers == "scores" else _COPIES

    def loss(drawings: Tensor, wanted: Tensor) -> Tensor:
        """A label alone has no slope; how often it is right under noise has (Ilyas et al. 2018, section 2.4)."""
        if copies > 1:
            drawings, wanted = drawings.repeat(copies, 1, 1, 1), wanted.repeat(copies)
            drawings = drawings + _NOISE * _smooth(drawings.shape, _COARSE, generator)
        each = F.nll_loss(oracle(drawings.clamp(0, 1), shown=shown), wanted, reduction="none")
        return each.view(copies, -1).mean(dim=0)

    def look() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            answers = oracle(sketcher.drawing(codes), shown=shown)
        return F.nll_loss(answers, targets, reduction="none"), answers.argmax(dim=1) == targets

    losses, right = look()
    before = best = float(weights[right].sum())
    kept = deepcopy(sketcher.state_dict())
    try:
        while oracle.spent - begun + len(codes) + 2 * copies * _MOST_CODES <= queries and best < 1 - 1e-9:
            worst = (losses * weights).argsort(descending=True)[:_MOST_CODES]
            drawings = sketcher.drawing(codes[worst])
            leaf = drawings.detach().requires_grad_()
            (prior,) = torch.autograd.grad(F.cross_entropy(surrogate(leaf), targets[worst], reduction="sum"), leaf)
            u = guided_directions(prior, share=_PRIOR, coarse=_COARSE, generator=generator)
            gradient = score_gradient(partial(loss, wanted=targets[worst]), leaf.detach(), u[None], step=_STEP)
            optimizer.zero_grad()
            (drawings * gradient * weights[worst].view(-1, 1, 1, 1)).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
            losses, right = look()
            if float(weights[right].sum()) > best:
                best, kept = float(weights[right].sum()), deepcopy(sketcher.state_dict())
    except QueryBudgetExhausted:
        pass  # what was reached is kept
    sketcher.load_state_dict(kept)
    return Tuned(before, best, oracle.spent - begun, steps)
