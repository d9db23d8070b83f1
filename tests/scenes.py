"""Small scenes: drawn images with something to reconstruct, and obfuscators whose leakage is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.lab.attacks.dead_leaves import dead_leaves
from sfumato.lab.attacks.target import Target
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.budget import Budget, Trial
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.data import ImageSet

SIDE = 16


def images(count: int, *, seed: int = 0, side: int = SIDE) -> ImageSet:
    images = dead_leaves(count, side, side, seed=seed)
    return ImageSet(images, torch.arange(count) % 4, ("a", "b", "c", "d"), "drawn", f"drawn-{count}-{seed}")


class Swap(nn.Module):
    """Colours inverted and mirrored: loses nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return (1 - x).flip(3)


class Noise(nn.Module):
    """Adds noise, and says so."""

    noise_kind = "gaussian"

    def mean(self, x: Tensor) -> Tensor:
        return x

    def noise_std(self) -> Tensor:
        return torch.full((3, SIDE, SIDE), 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * torch.randn_like(x)


def target(module: nn.Module, *, stochastic: bool = False, gradients: bool = True) -> Target:
    @torch.no_grad()
    def payload(x: Tensor) -> Tensor:
        out: Tensor = module(x)
        return out

    return Target(type(module).__name__, SIDE, SIDE, payload, module if gradients else None, stochastic)


def setting(module: nn.Module, *, train: int = 240, test: int = 60, **facts: bool) -> AttackSetting:
    return AttackSetting(target(module, **facts), images(train), images(test, seed=1))


BOX = Threat.WHITE_BOX
BRIEF = Budget(
    name="quick",
    description="for tests",
    trials=(Trial("least squares", BOX),),
    views=(),
    sanity_check_images=64,
    identification_images=64,
    attribute_images=64,
    test_images=20,
    seeds=1,
)
TINY = Budget(
    name="quick",
    description="for tests",
    trials=(
        Trial("least squares", BOX),
        Trial("residual decoder", BOX, 640),
        Trial("total variation", BOX, steps=4),
        Trial("least squares", Threat.PAIRS, pairs=40),
        Trial("least squares", Threat.PAIRS, pairs=200),
        Trial("least squares", Threat.PAIRS, pairs=1_000),
        Trial("least squares", Threat.SHADOW),
        Trial("least squares", Threat.OTHER_DATA),
        Trial("least squares", Threat.CLOUD),
        Trial("discriminator without pairs", Threat.NO_PAIRS, 64),
    ),
    views=(Trial("least squares", BOX, views=4),),
    sanity_check_images=64,
    identification_images=128,
    attribute_images=128,
    column_images=128,
    column_test_images=40,
    test_images=40,
    seeds=1,
)
