"""Images from a prior, steered by the gradient of the distance between their payload and the observed one.

Noise is removed step by step. At each, the clean image that the prior expects is moved towards the observed payload,
and gets the next step's noise.

Source: guidance by the gradient of the payload's distance, DRAG, arXiv 2509.11724; with a flow and without gradients
through it, Martin et al. 2025 (PnP-Flow), algorithm 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.lab.attacks.flow import check_payloads, noises
from sfumato.lab.attacks.prior import Prior, image_prior
from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared
from sfumato.lab.attacks.threat_models import Knowledge, Threat
from sfumato.lab.attacks.total_variation import Inversion, inversion

_CORRECTIONS = 3
"""Steps towards the payload for each step of the flow."""
_FARTHEST = 0.1
"""Root mean square of a correction at most, in pixel values in [0, 1]: gradients through a code are a hint."""
_BATCH = 100


class GuidedPrior(Attacker):
    """As many steps as the budget has, from noise to an image that the prior finds likely and the payload fits."""

    name = "guided prior"
    threats = frozenset({Threat.WHITE_BOX})
    learns = False
    needs_gradients = True
    uses_prior = True

    def evaluations(self, steps: int) -> int:
        """See `Attacker`; the obfuscator's gradients take as long again."""
        return 2 * steps

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`."""
        pairs = self._pairs(knowledge)
        known, prior = inversion(knowledge, self.name, budget.seed), image_prior(pairs.images, budget)
        # What the noise of a stochastic obfuscator leaves even of the original; 0 for any other.
        floor = known.misfit(known.images.clone().requires_grad_(), known.observed).detach().mean()
        noise = noises(budget.steps, (knowledge.height, knowledge.width), budget.seed)

        def reconstruct(observed: Tensor) -> Tensor:
            check_payloads(observed, known.observed)
            parts, done = [], 0
            for part in torch.split(observed, _BATCH):
                parts.append(_steered(known, prior, part, noise, floor))
                done += len(part)
                budget.report(done, len(observed))
            return torch.cat(parts)

        return Prepared(reconstruct, params=sum(p.numel() for p in prior.flow.net.parameters()))


def _steered(known: Inversion, prior: Prior, observed: Tensor, noise: Tensor, floor: Tensor) -> Tensor:
    flow, given = prior.flow, prior.given(len(observed))
    clean, images = torch.zeros_like(given.base), given.base
    for step, fresh in enumerate(noise):
        time = step / len(noise)
        z = torch.lerp(fresh.expand_as(clean), clean, time)
        images = flow.images(flow.endpoint(z, time, given), given)
        for _ in range(_CORRECTIONS):
            images = _corrected(known, images, observed, floor)
        clean = (images - given.base) / flow.spread
    return images


def _corrected(known: Inversion, images: Tensor, observed: Tensor, floor: Tensor) -> Tensor:
    """Move images down the gradient of their misfit, as far as would end it if it were linear.

    Source: Polyak 1987, section 5.3; the step is `misfit / |gradient|^2`.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        misfit = known.misfit(images, observed)
        (gradient,) = torch.autograd.grad(misfit.sum(), images)
    excess = (misfit.detach() - floor).clamp_min(0)
    norm = gradient.square().flatten(1).sum(dim=1).clamp_min(1e-20)
    step = gradient * (excess / norm)[:, None, None, None]
    far = step.square().flatten(1).mean(dim=1).sqrt().clamp_min(1e-12)
    step = step * (_FARTHEST / far).clamp_max(1)[:, None, None, None]
    return (images.detach() - step).clamp(0, 1)
