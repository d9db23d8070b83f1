"""Least squares: the best linear map from the payload to the image.

It is exact and fast, reconstructs whatever a linear obfuscation left (blur, projection, permutation), and is where the
learned decoders start.

Source: ridge regression, Hoerl and Kennard 1970; its penalty is chosen on pairs held out.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from sfumato.errors import AuditError
from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared
from sfumato.lab.attacks.threat_models import Knowledge, Pairs

MAX_INPUTS = 6144
"""Numbers of the payload that are used: twice a 3x32x32 image. Larger inputs are seen through fewer pairs."""
MAX_PAIRS = 12_000
_MAX_PAIRS_DUAL = 1_500
_PENALTIES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0)
_PENALTY_OUTPUTS = 64
_BATCH = 250


class LinearEstimate(nn.Module):
    """`image = (the payload - mean) @ inward @ outward + mean image`, a map kept in one or two factors.

    Args:
        offset: (inputs,) float32.
        factors: matrices to multiply with, one after the other; (inputs, r), ..., (r, 3 * H * W).
        base: (3, H, W) float32, the mean image.
    """

    offset: Tensor
    base: Tensor

    def __init__(self, offset: Tensor, factors: list[Tensor], base: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset)
        self.register_buffer("base", base)
        self.factors = nn.ParameterList([nn.Parameter(f, requires_grad=False) for f in factors])

    def forward(self, observed: Tensor) -> Tensor:
        """(N, C, H', W') float32 -> (N, 3, H, W) float32, not bounded."""
        x = _leading(observed).flatten(1)[:, : len(self.offset)] - self.offset
        for factor in self.factors:
            x = x @ factor
        return x.reshape(-1, *self.base.shape) + self.base


class Linear(Attacker):
    """Least squares as an attacker of its own."""

    name = "least squares"

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`."""
        estimate, used = solve(self._pairs(knowledge), seed=budget.seed)
        return Prepared(
            reconstruct=lambda observed: estimate(observed).clamp(0, 1),
            params=sum(f.numel() for f in estimate.factors),
            images_seen=used,
        )


@lru_cache(maxsize=1)
@torch.no_grad()
def solve(pairs: Pairs, *, seed: int, among: Tensor | None = None) -> tuple[LinearEstimate, int]:
    """Fit the linear map; the penalty is the one that does best on a tenth of the pairs held out.

    The last result is cached: attackers with the same knowledge start from the same map.

    Args:
        pairs: at least 2.
        seed: of noise and mirroring, where the pairs are fresh.
        among: indices of those to use; all by default.

    Returns:
        The map and how many pairs it was fitted on.

    Raises:
        AuditError: fewer than 2 pairs.
    """
    among = torch.arange(len(pairs)) if among is None else among
    if len(among) < 2:
        raise AuditError(f"least squares needs at least 2 pairs, got {len(among)}")
    source = torch.Generator().manual_seed(seed)
    images, observed = _gather(pairs, among[torch.randperm(len(among), generator=source)], source)
    inputs = observed.flatten(1)
    held = max(1, len(inputs) // 10)
    base, offset = images[held:].mean(dim=0), inputs[held:].mean(dim=0)
    x, y = inputs[held:] - offset, (images[held:] - base).flatten(1)
    x_held, y_held = inputs[:held] - offset, (images[:held] - base).flatten(1)
    dual = len(x) < x.shape[1]
    gram = (x @ x.T if dual else x.T @ x).double()
    targets = y if dual else x.T @ y
    project = x_held @ x.T if dual else x_held
    # A few outputs suffice to choose the penalty; all are solved for once.
    some = torch.linspace(0, y.shape[1] - 1, _PENALTY_OUTPUTS).long()
    errors = {}
    for penalty in _PENALTIES:
        solution = _ridge(gram, targets[:, some], penalty)
        if solution is not None:
            errors[penalty] = float((project @ solution - y_held[:, some]).square().mean())
    solution = _ridge(gram, targets, min(errors, key=errors.__getitem__)) if errors else None
    if solution is None:
        raise AuditError("least squares failed for every penalty: the payload is constant or not finite")
    wide = dual and x.shape[1] > MAX_INPUTS
    factors = [x.T, solution] if wide else [x.T @ solution] if dual else [solution]
    return LinearEstimate(offset, [factor.contiguous() for factor in factors], base), len(x)


def _ridge(gram: Tensor, targets: Tensor, penalty: float) -> Tensor | None:
    """Solve `(gram + penalty * scale) x = targets`; None if the matrix is not positive definite."""
    scale = gram.diagonal().mean().clamp_min(1e-12)
    shifted = gram + penalty * scale * torch.eye(len(gram), dtype=gram.dtype)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    return None if int(failed) else torch.cholesky_solve(targets.double(), factor).float()


def _gather(pairs: Pairs, order: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    known, observed = pairs.batch(order[:2], source)
    too_large = _leading(observed).flatten(1).shape[1] > MAX_INPUTS
    order = order[: _MAX_PAIRS_DUAL if too_large else MAX_PAIRS]
    # Filled in place: what is kept must not lie between what is freed, which can be 500 times as large.
    images = torch.empty(len(order), *known.shape[1:])
    leading = torch.empty(len(order), *_leading(observed).shape[1:])
    for part in torch.split(torch.arange(len(order)), _BATCH):
        known, observed = pairs.batch(order[part], source)
        images[part], leading[part] = known, _leading(observed)
    return images, leading


def _leading(observed: Tensor) -> Tensor:
    """The first channels, as many as stay within `MAX_INPUTS` but at least 3: the payload comes first."""
    _, channels, height, width = observed.shape
    return observed[:, : max(3, min(channels, MAX_INPUTS // (height * width)))]
