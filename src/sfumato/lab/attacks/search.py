"""Search without gradients, in the noise that an image prior starts from, for an image with the observed code.

Many images are drawn once for all payloads. For each payload, those nearest to it are its first population, which
evolves: those with the nearest payloads have offspring, which move less from generation to generation. The attacker
only calls the obfuscator.

Source: search in a generator's latent for what gradients do not give, Li et al. 2022 (GGL), section 3.3; a mutation
that keeps noise Gaussian, Cotter et al. 2013 (preconditioned Crank-Nicolson), section 4.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.flow import STEPS, check_payloads, distances, noises
from sfumato.lab.attacks.prior import Prior, image_prior
from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared, Reconstruct
from sfumato.lab.attacks.threat_models import Knowledge, Threat, UnavailableError
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.models.codewords import word_numbers

DRAWN = 2_048
"""Images of 32x32 that every payload's search starts from; fewer of larger ones, which take as long."""
_LEAST_DRAWN = 256
POPULATION = 16
_PARENTS = 4
_LEAST_MOVE = 0.1
_BATCH = 32
_FOUND = 1e-6
"""Mean square distance below which two payloads are the same code."""
_PROBED = 1_000
"""Of the attacker's own payloads: if more than half of them differ, there is no code to search for."""
_Ranked = tuple[Tensor, Tensor, Tensor]
"""Noises (N, K, 3, H, W), their distances (N, K) and images, nearest first."""


class PriorSearch(Attacker):
    """As many generations as the budget has steps; for discrete codes."""

    name = "prior search"
    threats = frozenset({Threat.WHITE_BOX})
    learns = False
    uses_prior = True

    def evaluations(self, steps: int) -> int:
        """See `Attacker`; fewer where the code is found early, and a share of those that are drawn for all."""
        return POPULATION * steps * STEPS

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`."""
        pairs, encode = self._pairs(knowledge), knowledge.encode
        if encode is None:
            raise AuditError(f"{self.name} needs the obfuscator to call; only pairs are known")
        some = torch.arange(min(len(pairs), _PROBED))
        _, example = pairs.batch(some, torch.Generator().manual_seed(budget.seed))
        if len(some) > 1 and int(word_numbers(example).max()) + 1 > len(some) / 2:
            raise UnavailableError("the payload is no discrete code: gradients tell more than a search does")
        prior = image_prior(pairs.images, budget)
        size = knowledge.height, knowledge.width
        count = min(DRAWN, max(_LEAST_DRAWN, DRAWN * 32 * 32 // (size[0] * size[1])))
        drawn = _drawn(prior, encode, noises(count, size, budget.seed))
        mutations = noises(POPULATION * budget.steps, size, budget.seed + 1).view(-1, POPULATION, 3, *size)

        def reconstruct(observed: Tensor) -> Tensor:
            check_payloads(observed, example)
            parts, done = [], 0
            for part in torch.split(observed, _BATCH):
                parts.append(_search(prior, encode, part, drawn, mutations))
                done += len(part)
                budget.report(done, len(observed))
            return torch.cat(parts)

        return Prepared(reconstruct, params=sum(p.numel() for p in prior.flow.net.parameters()))


class _Drawn(NamedTuple):
    """Noises and the images they lead to, (M, 3, H, W) each, and the images' payloads, (M, C, H', W')."""

    noise: Tensor
    images: Tensor
    payloads: Tensor

    def nearest(self, observed: Tensor) -> _Ranked:
        """Rank them for each payload (N, C, H', W')."""
        flat = self.payloads.flatten(1)
        compared = observed[:, : self.payloads.shape[1]].flatten(1)
        apart = torch.cdist(compared, flat, compute_mode="donot_use_mm_for_euclid_dist").square() / flat.shape[1]
        order = apart.argsort(dim=1, stable=True)[:, :POPULATION]
        return self.noise[order], apart.gather(1, order), self.images[order]


def _drawn(prior: Prior, encode: Reconstruct, noise: Tensor) -> _Drawn:
    images = prior.flow.draw(noise, prior.given(len(noise)))
    return _Drawn(noise, images, torch.cat([encode(part) for part in torch.split(images, INFERENCE_BATCH)]))


def _search(prior: Prior, encode: Reconstruct, observed: Tensor, drawn: _Drawn, mutations: Tensor) -> Tensor:
    """Return the best images for payloads (N, C, H', W'); mutations are (generations, population, 3, H, W)."""
    best = prior.base.repeat(len(observed), 1, 1, 1)
    open_ = torch.arange(len(observed))
    population, apart, images = drawn.nearest(observed)
    for generation in range(len(mutations) + 1):
        best[open_] = images[:, 0]
        left = apart[:, 0] > _FOUND
        open_, population, apart, images = open_[left], population[left], apart[left], images[left]
        if generation == len(mutations) or not len(open_):
            return best
        move = max(_LEAST_MOVE, math.cos(math.pi / 2 * (generation + 1) / (len(mutations) + 1)))
        parents = population[:, :_PARENTS].repeat_interleave(POPULATION // _PARENTS, dim=1)
        children = math.sqrt(1 - move**2) * parents + move * mutations[generation]
        new = _evaluated(prior, encode, observed[open_], children)
        both = [torch.cat(pair, dim=1) for pair in zip((population, apart, images), new, strict=True)]
        population, apart, images = _sorted(*both)
    return best


def _evaluated(prior: Prior, encode: Reconstruct, observed: Tensor, population: Tensor) -> _Ranked:
    """Decode and encode noises (N, K, 3, H, W) and rank them for each payload."""
    count, size = population.shape[:2]
    images = prior.flow.draw(population.flatten(0, 1), prior.given(count * size))
    apart = distances(encode, images, observed.repeat_interleave(size, dim=0))
    return _sorted(population, apart.view(count, size), images.view(count, size, *images.shape[1:]))


def _sorted(population: Tensor, apart: Tensor, images: Tensor) -> _Ranked:
    """The best noises of each payload, nearest first."""
    order = apart.argsort(dim=1, stable=True)[:, :POPULATION]
    rows = torch.arange(len(apart))[:, None]
    return population[rows, order], apart[rows, order], images[rows, order]
