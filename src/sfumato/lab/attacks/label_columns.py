"""Attribute inference of label columns, such as glasses, age or identity: three attackers that learn from pairs.

- "nearest payloads": the most frequent value among the most similar known payloads. Against a code of few words these
  are all payloads of the same word, and nothing infers more from it, given enough pairs.
- "convolutional network" and "residual network": trained on the payloads; the second is larger.

Source: nearest neighbours, Cover and Hart 1967; distances survive a random projection, Johnson and Lindenstrauss 1984.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.lab.attacks.encoders import Encoder, ResidualEncoder
from sfumato.lab.attacks.image_attributes import Targets, train_heads
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import Pairs
from sfumato.lab.data import INFERENCE_BATCH

NEAREST, CONVOLUTIONAL, RESIDUAL = ATTACKERS = ("nearest payloads", "convolutional network", "residual network")
NEIGHBOURS = 25
"""Payloads that are as near as the last of these count, too."""
_MOST_COMPARED = 20_000
_PROJECTED = 512
"""Numbers that a larger payload is projected to before it is compared."""
_AS_NEAR = 1e-4
"""Of the mean distance: what the rounding of equal payloads may differ by."""
_MOST_PASSES = 30
"""Over the same pairs; more would overfit."""
_LEARNING_RATE = 2e-3


def guess_columns(
    pairs: Pairs, known: Targets, observed: Tensor, values: Mapping[str, int], budget: AttackBudget
) -> dict[str, Targets]:
    """Let every attacker learn from the same pairs, and guess.

    Args:
        pairs: to learn from, at least 1.
        known: column -> (len(pairs),) int64.
        observed: (M, C, H', W') float32, the payloads to guess from.
        values: column -> how many there are.
        budget: of the networks, which see each batch of payloads together.

    Returns:
        Attacker -> column -> (M,) int64.
    """
    budget = replace(budget, images=min(budget.images, _MOST_PASSES * len(pairs)))

    def batch(chosen: Tensor, source: torch.Generator) -> tuple[Tensor, Targets]:
        return pairs.batch(chosen, source)[1], {name: known[name][chosen] for name in known}

    networks = train_heads(
        pairs, batch, values, budget, encoders=(Encoder, ResidualEncoder), learning_rate=_LEARNING_RATE
    )
    learned = {who: guess(observed) for who, guess in zip((CONVOLUTIONAL, RESIDUAL), networks, strict=True)}
    return {NEAREST: _by_nearest(pairs, known, observed, values, budget.seed), **learned}


@torch.no_grad()
def _by_nearest(pairs: Pairs, known: Targets, observed: Tensor, values: Mapping[str, int], seed: int) -> Targets:
    source = torch.Generator().manual_seed(seed)
    numbers = observed[0].numel()
    projection = torch.randn((numbers, _PROJECTED), generator=source) if numbers > _PROJECTED else None

    def compared(payloads: Tensor) -> Tensor:
        flat = payloads.flatten(1).float()
        return (flat if projection is None else flat @ projection).double()

    places = torch.arange(min(len(pairs), _MOST_COMPARED))
    pool = torch.cat([compared(pairs.batch(part, source)[1]) for part in places.split(INFERENCE_BATCH)])  # type: ignore[no-untyped-call]
    votes = {name: F.one_hot(known[name][places], count).double() for name, count in values.items()}
    guesses: dict[str, list[Tensor]] = {name: [] for name in values}
    for part in observed.split(INFERENCE_BATCH):  # type: ignore[no-untyped-call]
        apart = torch.cdist(compared(part), pool)
        last = apart.kthvalue(min(NEIGHBOURS, len(pool)), dim=1, keepdim=True).values
        near = (apart <= last + _AS_NEAR * apart.mean()).double()
        for name in values:
            guesses[name].append((near @ votes[name]).argmax(dim=1))
    return {name: torch.cat(parts) for name, parts in guesses.items()}
