"""Trains a learned attacker: Adam at a constant rate, weights averaged over the run, validation at intervals.

The averaged weights are good at any moment, so that training can stop when the learning curve is flat, and one
budget's curve is the beginning of the next one's. Those of the best validation, on pairs held out, are kept.

Source: polynomial-decay averaging, Shamir and Zhang 2013; as used by Karras et al. 2024, section 3.1.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

Curve = Sequence[tuple[int, float]]
"""(images seen, mean squared error on held-out pairs), in time order, from 0 images on."""


@dataclass(frozen=True)
class Fitted:
    """A trained decoder.

    Attributes:
        net: with averaged weights, as they were at the best validation; in evaluation mode.
        curve: of its training.
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
    images: bool = True,
) -> Fitted:
    """Train a decoder on an attacker's own pairs.

    Args:
        net: the payload (N, C, H', W') float32 -> images (N, 3, H, W), not bounded.
        pairs: at least 5; up to a fifth of them, at most 500, is held out for the curve.
        loss: reconstructed (N, 3, H, W), not bounded, and original images (N, 3, H, W) in [0, 1] -> scalar; its own
            parameters, if any, are trained along.
        budget: of the attacker.
        learning_rate: of Adam.
        identity: distinguishes it from other trainings when a checkpoint is resumed.
        images: whether images come out: their error is measured within [0, 1], and training stops when its curve is
            flat. Of anything else the error does not tell when to stop.

    Raises:
        AuditError: too few pairs, a loss that is not finite, or a checkpoint that cannot be written or read.
        Interrupted: Ctrl-C or SIGTERM; the state was saved if there is a checkpoint.
    """
    if len(pairs) < 5:
        raise AuditError(f"a decoder needs at least 5 pairs to learn from, got {len(pairs)}")
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(budget.seed))
    aside = min(_HELD_OUT, len(pairs) // 5)
    held, mine = order[:aside], order[aside:]
    held_pairs = pairs.batch(held, torch.Generator().manual_seed(budget.seed + 1))
    training = _Training(identity, net, loss, learning_rate, budget.device, bounds=(0.0, 1.0) if images else None)
    steps = max(1, budget.images // BATCH)
    validate_every = max(1, steps // VALIDATIONS)
    if budget.checkpoint is not None and budget.checkpoint.exists():
        training.resume(budget.checkpoint)
    if not training.curve:
        training.validate(held_pairs)
    last_saved = time.monotonic()
    with interruptible() as interrupted:
        while training.step < steps and not (images and _stagnant(training.curve)):
            source = torch.Generator().manual_seed(budget.seed * 1_000_003 + training.step)
            batch = mine[torch.randint(len(mine), (min(BATCH, len(mine)),), generator=source)]
            value = training.learn(*pairs.batch(batch, source))
            if training.step % validate_every == 0 or training.step == steps:
                if not torch.isfinite(value):
                    raise AuditError(f"the attacker's loss is {value.item()} at step {training.step}")
                training.validate(held_pairs)
            budget.report(training.step, steps)
            if budget.checkpoint is not None and (interrupted or time.monotonic() - last_saved > CHECKPOINT_EVERY_S):
                save_checkpoint(budget.checkpoint, training.snapshot())
                last_saved = time.monotonic()
            if interrupted:
                raise Interrupted("interrupted; go on with --resume")
    budget.report(steps, steps)
    training.average.load_state_dict(training.best, strict=False)
    return Fitted(training.average, tuple(training.curve), flattened(training.curve), training.step * BATCH)


def in_parts(tensor: Tensor, size: tuple[int, int], least: int = 1, *, times: int = 1) -> tuple[Tensor, ...]:
    """Split (N, ...) into parts that go through a net at once: of at least `least` images of a size (H, W).

    Without gradients, parts may be several `times` as large.
    """
    return torch.split(tensor, max(least, times * _PIXELS_AT_ONCE // (size[0] * size[1])))


def flattened(curve: Curve) -> bool:
    """Whether the last third of the training changed less than `FLAT` of the error, for better or worse."""
    return _tells(curve) and abs(_gain(curve, 1 / 3)) < FLAT


def _stagnant(curve: Curve) -> bool:
    return _tells(curve) and _gain(curve, 1 / 2) < STOP


def _tells(curve: Curve) -> bool:
    return len(curve) > VALIDATIONS // 2 and curve[-1][0] >= LEAST_STEPS * BATCH


def _gain(curve: Curve, share: float) -> float:
    """The share of the error that the last `share` of the training took away."""
    end = curve[-1][0]
    before = [error for seen, error in curve if seen <= end * (1 - share)][-1]
    return 1 - curve[-1][1] / max(before, 1e-12)


class _Training:
    """A decoder in training, with everything that a checkpoint holds."""

    def __init__(
        self,
        identity: str,
        net: nn.Module,
        loss: nn.Module,
        learning_rate: float,
        device: torch.device,
        *,
        bounds: tuple[float, float] | None,
    ) -> None:
        self.identity, self.learning_rate, self.device, self.bounds = identity, learning_rate, device, bounds
        self.net, self.loss = net.to(device).train(), loss.to(device)
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.parameters = [p for part in (self.net, self.loss) for p in part.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate)
        self.least = _LEAST_NORMED if any(isinstance(part, nn.BatchNorm2d) for part in net.modules()) else 1
        self.fixed = {name for name, p in net.named_parameters() if not p.requires_grad}
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] = {}

    def learn(self, images: Tensor, observed: Tensor) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min(1.0, (self.step + 1) / _WARMUP_STEPS)
        self.optimizer.zero_grad()
        value, size = torch.zeros((), device=self.device), (images.shape[2], images.shape[3])
        for x, y in zip(in_parts(observed, size, self.least), in_parts(images, size, self.least), strict=True):
            with autocast(self.device):
                reconstructed = self.net(x.to(self.device))
            part = self.loss(reconstructed.float(), y.to(self.device)) * (len(x) / len(images))
            part.backward()
            value += part.detach()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        self.follow()
        return value

    def validate(self, held_pairs: tuple[Tensor, Tensor]) -> None:
        error = self._error(*held_pairs)
        if not self.curve or error < min(known for _, known in self.curve):
            self.best = {name: value.clone() for name, value in self._learned(self.average).items()}
        self.curve.append((self.step * BATCH, error))

    @torch.no_grad()
    def follow(self) -> None:
        keep = (1 - 1 / self.step) ** (_AVERAGE_POWER + 1)
        present = self._learned(self.net)
        for name, slow in self._learned(self.average).items():
            if slow.is_floating_point():
                slow.lerp_(present[name], 1 - keep)
            else:
                slow.copy_(present[name])

    @torch.no_grad()
    def _error(self, images: Tensor, observed: Tensor) -> float:
        total, size = 0.0, (images.shape[2], images.shape[3])
        for x, y in zip(in_parts(observed, size, times=4), in_parts(images, size, times=4), strict=True):
            with autocast(self.device):
                reconstructed = self.average(x.to(self.device)).float()
            if self.bounds is not None:
                reconstructed = reconstructed.clamp(*self.bounds)
            total += float((reconstructed - y.to(self.device)).square().mean()) * len(x)
        return total / len(images)

    def _learned(self, net: nn.Module) -> dict[str, Tensor]:
        return {name: value for name, value in net.state_dict().items() if name not in self.fixed}

    def snapshot(self) -> dict[str, object]:
        states = {"loss": self.loss.state_dict(), "optimizer": self.optimizer.state_dict()}
        nets = {"net": self._learned(self.net), "average": self._learned(self.average), "best": self.best}
        return {"identity": self.identity, "step": self.step, "curve": self.curve, **nets, **states}

    def resume(self, checkpoint: Path) -> None:
        saved = load_checkpoint(checkpoint, _PARTS)
        if saved["identity"] != self.identity:
            raise AuditError("the attacker's checkpoint belongs to another audit; restart without --resume")
        self.net.load_state_dict(saved["net"], strict=False)
        self.average.load_state_dict(saved["average"], strict=False)
        self.loss.load_state_dict(saved["loss"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.best = saved["step"], saved["best"]
        self.curve = [(int(seen), float(error)) for seen, error in saved["curve"]]
