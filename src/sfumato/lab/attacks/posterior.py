"""Samples of the images that a payload leaves possible, instead of their mean, which is blurred.

A rectified flow starts at a decoder's reconstruction with noise, sees the payload, and ends at an image. An attacker
that holds the obfuscator draws several and keeps the one whose payload is nearest to the observed one.

Source: Ohayon et al. 2025 (PMRF), algorithm 1; against split inference FIA-Flow, arXiv 2511.15316.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sfumato.lab.attacks.decoders import RESIDUAL, as_planes
from sfumato.lab.attacks.flow import STEPS, WIDTHS, Condition, Given, check_payloads, distances, fit_flow, noises
from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared, Reconstruct
from sfumato.lab.attacks.threat_models import Knowledge, Threat
from sfumato.lab.models.checkpoint import remove_checkpoint

DRAWS = 16


class PosteriorSampler(Attacker):
    """A flow from a decoder's reconstruction to an image, given the payload; the best of several draws.

    Args:
        widths: of the flow's network.
    """

    name = "posterior sampler"
    threats = frozenset(Threat) - {Threat.NO_PAIRS, Threat.CLOUD}
    learns = False
    refines = True

    def __init__(self, widths: tuple[int, int, int] = WIDTHS) -> None:
        self.widths = widths

    def evaluations(self, steps: int) -> int:
        """See `Attacker`."""
        return DRAWS * STEPS

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`; without an estimate, a residual decoder learns one, from as many images as the flow."""
        pairs, size, encode = self._pairs(knowledge), (knowledge.height, knowledge.width), knowledge.encode
        estimate, beside = knowledge.estimate, budget.checkpoint and budget.checkpoint.with_suffix(".decoder.pt")
        if estimate is None:
            estimate = RESIDUAL.prepare(knowledge, replace(budget, checkpoint=beside)).reconstruct
        _, example = pairs.examples(torch.Generator().manual_seed(budget.seed))
        condition = _condition(estimate, example, size)
        identity = f"{self.name}, {knowledge.threat}, {len(pairs)}, {budget.images}, {budget.seed}"
        flow, seen = fit_flow(pairs, condition, budget, identity=identity, widths=self.widths)
        if beside is not None:
            remove_checkpoint(beside)
        noise = noises(DRAWS, size, budget.seed)

        def reconstruct(observed: Tensor) -> Tensor:
            check_payloads(observed, example)
            given = condition(observed)
            if encode is None:
                return flow.draw(noise[:1].expand_as(given.base), given)
            best, least = given.base, torch.full((len(observed),), torch.inf)
            for done, start in enumerate(noise):
                drawn = flow.draw(start.expand_as(given.base), given)
                apart = distances(encode, drawn, observed)
                best = torch.where((apart < least)[:, None, None, None], drawn, best)
                least = torch.minimum(least, apart)
                budget.report(done + 1, len(noise))
            return best

        return Prepared(reconstruct, params=sum(p.numel() for p in flow.net.parameters()), images_seen=seen)


def _condition(estimate: Reconstruct, example: Tensor, size: tuple[int, int]) -> Condition:
    std, mean = torch.std_mean(example, dim=(0, 2, 3), keepdim=True)
    std = std.clamp_min(1e-6)

    def condition(observed: Tensor) -> Given:
        return Given(estimate(observed), as_planes(observed, mean, std, size))

    return condition
