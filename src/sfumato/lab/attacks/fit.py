"""Trains a learned attacker: Adam at a constant rate, weights averaged over the run, validation at intervals.

The average of the weights takes the place of a falling rate and is good at any moment, so that the learning curve
means something, training can stop when the curve is flat, and one budget's curve is the beginning of the next one's.
The attacker keeps the weights of its best validation, on pairs of its own that it held out.

Source: polynomial-decay averaging, Shamir and Zhang 2013; as used by Karras et al. 2024, section 3.1.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.artifacts.signals import interruptible
from sfumato.errors import AuditError, Interrupted
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import Pairs
from sfumato.lab.models import autocast
from sfumato.lab.models.checkpoint import load_checkpoint, save_checkpoint

BATCH = 64
_PIXELS_AT_ONCE = BATCH * 32 * 32
"""Larger images go through a net in parts, whose gradients are added up: memory is bounded, the step the same.

But for nets with batch norms, which see the statistics of a part; theirs are no smaller than `_LEAST_NORMED`.
"""
_LEAST_NORMED = 16
VALIDATIONS = 12
FLAT = 0.02
"""The curve is flat if the last third of the training changed the held-out error by less than this share."""
STOP = 0.004
"""Training stops early if the last half of it lowered the held-out error by less than this share."""
LEAST_STEPS = 60
"""Before so many steps a curve says nothing: the rate has hardly risen, the averaged weights lag behind."""
CHECKPOINT_EVERY_S = 60.0
_HELD_OUT = 500
_AVERAGE_POWER = 8
_WARMUP_STEPS = 50
_PARTS = frozenset({"identity", "net", "average", "best", "loss", "optimizer", "step", "curve"})

Loss = Callable[[Tensor, Tensor], Tensor]
"""Reconstructed (N, 3, H, W), not bounded, and original images (N, 3, H, W) in [0, 1] -> scalar."""


@dataclass(frozen=True)
class Fitted:
    """A trained decoder.

    Attributes:
        net: with averaged weights, as they were at the best validation; in evaluation mode.
        curve: (images seen, mean squared error on held-out pairs), in time order.
        flattened: whether the end of the curve is flat.
        images_seen: in training, with repetition.
    """

    net: nn.Module
    curve: tuple[tuple[int, float], ...]
    flattened: bool
    images_seen: int


def fit_decoder(
    net: nn.Module,
    pairs: Pairs,
    loss: nn.Module,
    budget: AttackBudget,
    *,
    learning_rate: float = 1e-3,
    identity: str = "",
) -> Fitted:
    """Train a decoder on an attacker's own pairs.

    Args:
        net: the payload (N, C, H', W') float32 -> images (N, 3, H, W), not bounded.
        pairs: at least 5; up to a fifth of them, at most 500, is held out for the curve.
        loss: see `Loss`; its own parameters, if any, are trained along.
        budget: budget, seed, checkpoint, progress.
        learning_rate: of Adam.
        identity: distinguishes it from other trainings when a checkpoint is resumed.

    Raises:
        AuditError: too few pairs, a loss that is not finite, or a checkpoint that cannot be written or read.
        Interrupted: Ctrl-C or SIGTERM; the state was saved if there is a checkpoint.
    """
    if len(pairs) < 5:
        raise AuditError(f"a decoder needs at least 5 pairs to learn from, got {len(pairs)}")
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(budget.seed))
    aside = min(_HELD_OUT, len(pairs) // 5)
    held, mine = order[:aside], order[aside:]
    held_source = torch.Generator().manual_seed(budget.seed + 1)
    held_pairs = pairs.batch(held, held_source)
    net, loss = net.to(budget.device).train(), loss.to(budget.device)
    average = copy.deepcopy(net).eval().requires_grad_(False)
    parameters = [p for part in (net, loss) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    steps = max(1, budget.images // BATCH)
    validate_every = max(1, steps // VALIDATIONS)
    least = _LEAST_NORMED if any(isinstance(part, nn.BatchNorm2d) for part in net.modules()) else 1
    state = _State(identity, net, average, loss, optimizer)
    if budget.checkpoint is not None and budget.checkpoint.exists():
        state.resume(load_checkpoint(budget.checkpoint, _PARTS))
    if not state.curve:
        state.validated(_error(average, held_pairs))
    last_saved = time.monotonic()
    with interruptible() as interrupted:
        while state.step < steps and not _stagnant(state.curve):
            source = torch.Generator().manual_seed(budget.seed * 1_000_003 + state.step)
            batch = mine[torch.randint(len(mine), (min(BATCH, len(mine)),), generator=source)]
            images, observed = pairs.batch(batch, source)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, (state.step + 1) / _WARMUP_STEPS)
            optimizer.zero_grad()
            value, size = torch.zeros((), device=budget.device), (images.shape[2], images.shape[3])
            for x, y in zip(in_parts(observed, size, least), in_parts(images, size, least), strict=True):
                with autocast(budget.device):
                    reconstructed = net(x.to(budget.device))
                part = loss(reconstructed.float(), y.to(budget.device)) * (len(x) / len(batch))
                part.backward()
                value += part.detach()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            state.step += 1
            state.follow()
            if state.step % validate_every == 0 or state.step == steps:
                if not torch.isfinite(value):
                    raise AuditError(f"the attacker's loss is {value.item()} at step {state.step}")
                state.validated(_error(average, held_pairs))
            budget.report(state.step, steps)
            if budget.checkpoint is not None and (interrupted or time.monotonic() - last_saved > CHECKPOINT_EVERY_S):
                save_checkpoint(budget.checkpoint, state.snapshot())
                last_saved = time.monotonic()
            if interrupted:
                raise Interrupted("interrupted; go on with --resume")
    budget.report(steps, steps)
    average.load_state_dict(state.best, strict=False)
    return Fitted(average, tuple(state.curve), flattened(state.curve), state.step * BATCH)


def in_parts(tensor: Tensor, size: tuple[int, int], least: int = 1, *, times: int = 1) -> tuple[Tensor, ...]:
    """Split what belongs to images, so that each part goes through a net at once.

    Args:
        tensor: (N, ...).
        size: (H, W) of the images.
        least: so many images at least.
        times: so many times as large as with gradients.
    """
    return torch.split(tensor, max(least, times * _PIXELS_AT_ONCE // (size[0] * size[1])))


def flattened(curve: list[tuple[int, float]] | tuple[tuple[int, float], ...]) -> bool:
    """Whether the last third of the training changed less than `FLAT` of the error, for better or worse.

    Args:
        curve: (images seen, error) in time order, from 0 images on.
    """
    return _tells(curve) and abs(_gain(curve, 1 / 3)) < FLAT


def _stagnant(curve: list[tuple[int, float]]) -> bool:
    return _tells(curve) and _gain(curve, 1 / 2) < STOP


def _tells(curve: list[tuple[int, float]] | tuple[tuple[int, float], ...]) -> bool:
    return len(curve) > VALIDATIONS // 2 and curve[-1][0] >= LEAST_STEPS * BATCH


def _gain(curve: list[tuple[int, float]] | tuple[tuple[int, float], ...], share: float) -> float:
    """The share of the error that the last `share` of the training took away."""
    end = curve[-1][0]
    before = [error for seen, error in curve if seen <= end * (1 - share)][-1]
    return 1 - curve[-1][1] / max(before, 1e-12)


@torch.no_grad()
def _error(net: nn.Module, pairs: tuple[Tensor, Tensor]) -> float:
    images, observed = pairs
    device = next(net.parameters()).device
    total = 0.0
    size = images.shape[2], images.shape[3]
    for x, y in zip(in_parts(observed, size, times=4), in_parts(images, size, times=4), strict=True):
        with autocast(device):
            reconstructed = net(x.to(device))
        total += float((reconstructed.float().clamp(0, 1) - y.to(device)).square().mean()) * len(x)
    return total / len(images)


class _State:
    """Everything that a checkpoint holds."""

    def __init__(
        self, identity: str, net: nn.Module, average: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.identity, self.net, self.average, self.loss, self.optimizer = identity, net, average, loss, optimizer
        self.fixed = {name for name, p in net.named_parameters() if not p.requires_grad}
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] = {}

    def validated(self, error: float) -> None:
        """Add a point to the learning curve, and keep the weights if they are the best so far."""
        if not self.curve or error < min(known for _, known in self.curve):
            self.best = {name: value.clone() for name, value in self._learned(self.average).items()}
        self.curve.append((self.step * BATCH, error))

    @torch.no_grad()
    def follow(self) -> None:
        """Move the averaged weights towards the present ones."""
        keep = (1 - 1 / self.step) ** (_AVERAGE_POWER + 1)
        present = self._learned(self.net)
        for name, slow in self._learned(self.average).items():
            if slow.is_floating_point():
                slow.lerp_(present[name], 1 - keep)
            else:
                slow.copy_(present[name])

    def _learned(self, net: nn.Module) -> dict[str, Tensor]:
        return {name: value for name, value in net.state_dict().items() if name not in self.fixed}

    def snapshot(self) -> dict[str, Any]:
        states = {"loss": self.loss.state_dict(), "optimizer": self.optimizer.state_dict()}
        nets = {"net": self._learned(self.net), "average": self._learned(self.average), "best": self.best}
        return {"identity": self.identity, "step": self.step, "curve": self.curve, **nets, **states}

    def resume(self, saved: dict[str, Any]) -> None:
        if saved["identity"] != self.identity:
            raise AuditError("the attacker's checkpoint belongs to another audit; restart without --resume")
        self.net.load_state_dict(saved["net"], strict=False)
        self.average.load_state_dict(saved["average"], strict=False)
        self.loss.load_state_dict(saved["loss"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.best = saved["step"], saved["best"]
        self.curve = [(int(seen), float(error)) for seen, error in saved["curve"]]
