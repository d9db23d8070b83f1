"""Several attackers at once, and restarts of attackers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_MEMORY = 0.05
"""Share of the last step in the running errors: about the last 20 steps count."""


class Attackers(nn.Module):
    """Attackers trained in parallel; the best of them, by its running error, stands for all.

    The obfuscator faces only the best one: a sum over attackers could be raised without end by driving a weak one, such
    as one that was just restarted, further off, while the strong one is not affected.

    Source: the strongest of several adversaries as the inner problem, Madry et al. 2018, equation 2.1; the choice by
    running error is ours.

    Args:
        nets: obfuscated images (N, 3, H, W) to reconstructed images.

    Attributes:
        errors: (number of nets,) float32, running reconstruction errors; infinite before a net's first step.
    """

    errors: Tensor

    def __init__(self, *nets: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.register_buffer("errors", torch.full((len(nets),), torch.inf))

    @property
    def best(self) -> int:
        """Index of the smallest error; the first if none has begun."""
        return int(self.errors.argmin())

    @torch.no_grad()
    def note(self, errors: Tensor) -> None:
        """Update the running errors with those of a step, (number of nets,) float."""
        errors = errors.to(self.errors)
        self.errors.copy_(torch.where(self.errors.isinf(), errors, self.errors.lerp(errors, _MEMORY)))

    def forward(self, obfuscated: Tensor) -> Tensor:
        """(N, 3, H, W) float -> the best attacker's reconstruction, the same shape, not bounded."""
        reconstructed: Tensor = self.nets[self.best](obfuscated)
        return reconstructed


def attacker_to_restart(epoch: int, *, every: int | None, attackers: int) -> int | None:
    """Return which of so many attackers restarts after an epoch, if any: one in turn `every` so many epochs."""
    if every is None or epoch == 0 or epoch % every:
        return None
    return (epoch // every - 1) % attackers


def restart(net: nn.Module, build: Callable[[], nn.Module], *, seed: int) -> None:
    """Give a network the weights of a fresh one from `build`, the same ones in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net.load_state_dict(build().state_dict())
