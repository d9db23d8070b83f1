"""From images to what a task takes: batches in an order that is always the same, augmented, as the network's input."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.lab.data import Augmentation, augment
from sfumato.lab.data.augment import shrink
from sfumato.lab.training.recipe_parts import TrainingRecipe

SMALL = 0.75
"""Share of their sides that images keep in the first epochs, if the plan has `small_epochs`."""


class Images(Protocol):
    """Training images, in memory (`ImageSet`) or streamed (`Stream`)."""

    def __len__(self) -> int:
        """Return how many an epoch has."""

    def batches(
        self, seed: int, batch_size: int, *, first: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch's batches from `first` on; see `ImageSet.batches`."""


@dataclass(frozen=True)
class Place:
    """Where a run stands: the epoch, the step in it that comes next, and this process among all of them."""

    epoch: int
    step: int = 0
    rank: int = 0
    world_size: int = 1


def ordered(images: Images, plan: TrainingRecipe, place: Place) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rest of an epoch's batches, in the order of the plan's seed; see `ImageSet.batches`."""
    at = {"first": place.step, "rank": place.rank, "world_size": place.world_size}
    return images.batches(derived_seed(plan.seed, "order", place.epoch), plan.batch_size, **at)


def augmented(
    images: Images, plan: TrainingRecipe, augmentation: Augmentation, place: Place, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rest of an epoch's batches, augmented afresh.

    Yields:
        Images (n, 3, H, W) float in [0, 1] and labels (n,) int64, on the device.
    """
    for step, (batch, labels) in enumerate(ordered(images, plan, place), place.step):
        generator = torch.Generator().manual_seed(derived_seed(plan.seed, "augment", place.epoch, step, place.rank))
        x = as_input(augment(batch.to(device), augmentation, generator), channels_last=plan.channels_last)
        if place.epoch < plan.small_epochs:
            x = as_input(shrink(x, SMALL), channels_last=plan.channels_last)
        yield x, labels.to(device)


def as_input(images: Tensor, *, channels_last: bool) -> Tensor:
    """Return images (N, 3, H, W), uint8 or floating-point in [0, 1], as a task takes them: floating-point."""
    x = images if images.is_floating_point() else images.float().div_(255)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def derived_seed(*parts: object) -> int:
    """Return a seed of 63 bits that depends on all parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
