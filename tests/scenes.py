"""Small scenes: drawn pictures with something to restore, and obfuscators whose leakage is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.audit.dead_leaves import dead_leaves
from sfumato.audit.scene import Scene
from sfumato.audit.target import Target
from sfumato.data import ImageSet

SIDE = 16


def pictures(count: int, *, seed: int = 0, side: int = SIDE) -> ImageSet:
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
    def travels(x: Tensor) -> Tensor:
        out: Tensor = module(x)
        return out

    return Target(type(module).__name__, SIDE, SIDE, travels, module if gradients else None, stochastic)


def scene(module: nn.Module, *, train: int = 240, test: int = 60, **facts: bool) -> Scene:
    return Scene(target(module, **facts), pictures(train), pictures(test, seed=1))
