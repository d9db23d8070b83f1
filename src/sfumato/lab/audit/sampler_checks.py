"""Sanity checks of the generative attackers, on maps that tell all of the image and on one that tells nothing.

See `sanity_checks`, which has those of the decoders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.prior import mean_image
from sfumato.lab.attacks.protocol import AttackBudget, Reconstruct
from sfumato.lab.attacks.registry import ATTACKERS, GENERATIVE
from sfumato.lab.attacks.threat_models import FreshPairs, Knowledge, Threat
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.result_store import cached
from sfumato.lab.audit.sanity_checks import checks_depend_on
from sfumato.lab.audit.schema import SanityCheck
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.measures import psnr_db
from sfumato.progress import Progress, silent

SAMPLER_DB = 25.0
"""On the identity: less than the decoders' 30 dB, as a sample keeps some of the noise that it started from."""
GAIN = 0.5
"""Share of the mean image's error that a flow must take away if it starts there and the payload is the image."""
LEARNING_SHARE = 4
"""It sees so many times the images of the others for that: it has nothing to start from."""
CODES_FOUND = 0.9
"""Share of images for which the search must find an image with the same code."""
NOTHING = 0.98
"""Of the mean image's error; with less, an attacker knows more than a constant payload tells."""
LEVELS, QUARTERS = 4, 2
"""The code of the search's check: the brightness of each quarter of the image in four levels, 8 bits."""
_TEST_IMAGES = 48


class Empty(nn.Module):
    """A constant payload, through which a gradient comes that is 0."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> zeros, the same shape."""
        return 0 * images


class Quarters(nn.Module):
    """A code of 8 bits."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1] -> (N, 1, 2, 2) float32, the level of each quarter's brightness."""
        brightness = F.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), QUARTERS)
        return (brightness * LEVELS).floor().clamp(0, LEVELS - 1)


@dataclass(frozen=True)
class _Check:
    """An attacker on a map; what it starts from, if it does, is least squares or the mean image."""

    name: str
    of: str
    obfuscator: nn.Module
    steps: int = 0
    from_mean: bool = False


_SAMPLER, _GUIDED, _SEARCH = GENERATIVE
_CHECKS = (
    _Check(_SAMPLER, "identity", nn.Identity()),
    _Check(_SAMPLER, "identity from the mean image", nn.Identity(), from_mean=True),
    _Check(_SAMPLER, "constant payload", Empty()),
    _Check(_GUIDED, "identity", nn.Identity(), steps=30),
    _Check(_GUIDED, "constant payload", Empty(), steps=30),
    _Check(_SEARCH, "code of 8 bits", Quarters(), steps=10),
    _Check(_SEARCH, "constant payload", Empty(), steps=2),
)


def evaluations(budget: Budget) -> int:
    """Return how many times the checks of a budget compute a network for an image, apart from training."""
    return _TEST_IMAGES * sum(ATTACKERS[check.name].evaluations(check.steps) for check in _checks(budget))


def sampler_checks(
    train: ImageSet,
    test: ImageSet,
    *,
    budget: Budget,
    device: torch.device,
    progress: Progress = silent,
) -> tuple[SanityCheck, ...]:
    """Try the generative attackers that a budget has; from the cache if that was done before.

    Each flow of a posterior sampler sees the budget's `sanity_check_images`, or `LEARNING_SHARE` times as many.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    checks = _checks(budget)
    if not checks:
        return ()
    names = tuple(dict.fromkeys(check.name for check in checks))
    of = (*checks_depend_on(train, test, budget.sanity_check_images, device), names, budget.prior_images)
    find = partial(_sampler_checks, checks, train, test.subset(_TEST_IMAGES), budget, device, progress)
    return cached("sampler-checks", of, tuple[SanityCheck, ...], find)


def _checks(budget: Budget) -> tuple[_Check, ...]:
    attackers = {trial.attacker for trial in budget.trials}
    return tuple(check for check in _CHECKS if check.name in attackers) if budget.sanity_check_images else ()


def _sampler_checks(
    checks: tuple[_Check, ...],
    train: ImageSet,
    test: ImageSet,
    budget: Budget,
    device: torch.device,
    progress: Progress,
) -> tuple[SanityCheck, ...]:
    mean, found = mean_image(train.images), []
    for check in checks:
        stage = f"sanity check: {check.name}, {check.of}"
        images, prior = budget.sanity_check_images, budget.prior_images
        images *= LEARNING_SHARE if check.from_mean else 1
        own = AttackBudget(images, check.steps, device=device, progress=progress, stage=stage, prior_images=prior)
        found.append(_tried(check, train, test, mean, own))
    return tuple(found)


def _tried(check: _Check, train: ImageSet, test: ImageSet, mean: Tensor, budget: AttackBudget) -> SanityCheck:
    encode = torch.no_grad()(check.obfuscator)
    pairs, (height, width) = FreshPairs(train.images, encode), train.images.shape[2:]
    knowledge = Knowledge(Threat.WHITE_BOX, height, width, pairs, check.obfuscator)
    originals, attacker = test.images.float() / 255, ATTACKERS[check.name]
    if attacker.refines:
        knowledge = replace(knowledge, estimate=_start(check, knowledge, mean, budget))
    reconstructed = attacker.prepare(knowledge, budget).reconstruct(encode(originals))
    same = (encode(reconstructed) - encode(originals)).flatten(1).abs().amax(dim=1) < 1 / LEVELS
    error, label = ((guess - originals).square().mean().item() for guess in (reconstructed, mean))
    return _judged(check, error, label, float(same.double().mean()))


def _start(check: _Check, knowledge: Knowledge, mean: Tensor, budget: AttackBudget) -> Reconstruct:
    if check.from_mean:
        return lambda observed: mean.expand(len(observed), -1, -1, -1)
    return Linear().prepare(knowledge, budget).reconstruct


def _judged(check: _Check, error: float, mean: float, same: float) -> SanityCheck:
    share = f"MSE {error:.4f}, {error / mean:.2f} of the mean image's"
    passed, measured, needed, detail = {
        "identity": (
            psnr_db(error) >= SAMPLER_DB,
            f"{psnr_db(error):.2f} dB",
            f"at least {SAMPLER_DB:.2f} dB",
            "nothing is lost",
        ),
        "identity from the mean image": (
            error <= (1 - GAIN) * mean,
            share,
            f"at most {1 - GAIN:g}",
            "nothing is lost, and the flow alone has to read it",
        ),
        "constant payload": (
            error >= NOTHING * mean,
            share,
            f"at least {NOTHING:g}",
            "nothing can be known; a sample has about twice the mean's error",
        ),
        "code of 8 bits": (
            same >= CODES_FOUND,
            f"{same:.0%} have the observed code",
            f"at least {CODES_FOUND:.0%}",
            "without gradients the image cannot be found, but one with its code can",
        ),
    }[check.of]
    name = f"{check.name}, {check.of}"
    return SanityCheck(name=name, passed=passed, measured=measured, needed=needed, detail=detail)
