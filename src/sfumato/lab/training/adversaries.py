"""Several attackers at once, and attackers that begin anew."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_MEMORY = 0.05
"""Share of the last step in the running errors: about the last 20 steps count."""


class Attackers(nn.Module):
    """Attackers trained side by side; the best of them, by the error of the last steps, stands for all.

    The obfuscator faces the best one alone. What leaks is measured by the best attacker, so that is the term to push; a
    sum over attackers could be raised without end by driving a weak one, such as one that has just begun anew, further
    off, while the strong one sees what it saw before.

    Source: the strongest of several adversaries as the inner problem, Madry et al. 2018, equation 2.1; the choice by
    running error is ours.

    Args:
        nets: obfuscated images (N, 3, H, W) to reconstructed images.

    Attributes:
        errors: (number of nets,) float32, running reconstruction errors; infinite for one that has not begun.
    """

    errors: Tensor

    def __init__(self, *nets: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.register_buffer("errors", torch.full((len(nets),), torch.inf))

    @property
    def best(self) -> int:
        """Which one has the smallest error; the first if none has begun."""
        return int(self.errors.argmin())

    @torch.no_grad()
    def note(self, errors: Tensor) -> None:
        """Takes the errors of a step, (number of nets,) float, into the running ones."""
        errors = errors.to(self.errors)
        self.errors.copy_(torch.where(self.errors.isinf(), errors, self.errors.lerp(errors, _MEMORY)))

    def forward(self, obfuscated: Tensor) -> Tensor:
        """(N, 3, H, W) float -> what the best attacker reconstructs, the same shape, not bounded."""
        reconstructed: Tensor = self.nets[self.best](obfuscated)
        return reconstructed


def attacker_to_restart(epoch: int, *, every: int | None, attackers: int) -> int | None:
    """Which attacker begins anew before an epoch; they take turns.

    Args:
        epoch: how many epochs are done.
        every: epochs between two restarts; None for never.
        attackers: how many there are.
    """
    if every is None or epoch == 0 or epoch % every:
        return None
    return (epoch // every - 1) % attackers


def restart(net: nn.Module, build: Callable[[], nn.Module], *, seed: int) -> None:
    """Gives a network the weights of a fresh one, the same ones in every process.

    Args:
        net: is changed in place.
        build: makes one like it.
        seed: of the fresh weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net.load_state_dict(build().state_dict())
