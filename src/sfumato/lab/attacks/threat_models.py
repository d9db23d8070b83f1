"""Threat models: what an attacker knows. It is handed a `Knowledge` and nothing else, never a test image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from sfumato.errors import AuditError
from sfumato.lab.attacks.target import Noisy

_EXAMPLES = 500


class UnavailableError(AuditError):
    """An attack that cannot be tried here, because something for it is missing."""


class Threat(StrEnum):
    """What the attacker knows before it sees the payloads that it attacks."""

    PAIRS = "pairs"
    """Some images and the payload for them."""
    WHITE_BOX = "white-box"
    """The obfuscator itself: any number of pairs from public images, and gradients."""
    SHADOW = "shadow"
    """Only the recipe: it trains an obfuscator of its own with another seed."""
    OTHER_DATA = "other-data"
    """Pairs, but of images of another kind."""
    CLOUD = "cloud"
    """As the white box, and the classifier's inner features and logits: the operator of the cloud."""
    NO_PAIRS = "no-pairs"
    """The payloads of some images, and other images of the same kind, but no pair."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images and the payload for them; hashed by identity, because what was learned from pairs is cached for them.

    Attributes:
        images: (N, 3, H, W) uint8.
    """

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def after(self, count: int) -> Self:
        """Return the pairs without the first `count`."""
        rows = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: row[count:] for name, row in rows.items() if isinstance(row, Tensor)})

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) float32 in [0, 1] and the payload for them (B, C, H', W') float32."""
        raise NotImplementedError

    def examples(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the first few of them, as `batch` does, for statistics."""
        return self.batch(torch.arange(min(len(self), _EXAMPLES)), generator)


@dataclass(frozen=True, eq=False)
class FixedPairs(Pairs):
    """Pairs that the attacker got hold of: one observation of each image.

    Attributes:
        observed: (N, C, H', W') float32.
    """

    observed: Tensor

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `Pairs`."""
        return self.images[indices].float() / 255, self.observed[indices]


@dataclass(frozen=True, eq=False)
class LazyPairs(Pairs):
    """As `FixedPairs`, of a function without noise, whose values are computed when they are needed.

    Attributes:
        payload: (B, 3, H, W) float32 in [0, 1] -> (B, C, H', W') float32.
    """

    payload: Callable[[Tensor], Tensor]
    mirrors: ClassVar[bool] = False

    @torch.no_grad()
    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `Pairs`."""
        images = self.images[indices].float() / 255
        if self.mirrors:
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images, self.payload(images)


class FreshPairs(LazyPairs):
    """Pairs made by an attacker that holds the function: mirrored at random, with fresh noise where there is noise."""

    mirrors = True


@dataclass(frozen=True)
class Knowledge:
    """All that an attacker is handed.

    Attributes:
        threat: the threat model.
        height: rows of the images to reconstruct.
        width: columns of the images to reconstruct.
        pairs: to learn from; None under `NO_PAIRS`.
        module: the obfuscator with gradients, under `WHITE_BOX` and `CLOUD`, if it has any.
        intercepted: (M, C, H', W') float32, payloads of images that it does not know; under `NO_PAIRS`.
        public: (N, 3, H, W) uint8, images of the same kind as the intercepted ones, not the same; under `NO_PAIRS`.
        estimate: the best reconstruction that the same attacker learned before from these pairs, as
            `sfumato.lab.attacks.protocol.Reconstruct`; None if it learned none.
        deobfuscator: the network that the obfuscator was trained against, likewise, under `WHITE_BOX`; None if there
            is none.
    """

    threat: Threat
    height: int
    width: int
    pairs: Pairs | None = None
    module: nn.Module | None = None
    intercepted: Tensor | None = None
    public: Tensor | None = None
    estimate: Callable[[Tensor], Tensor] | None = None
    deobfuscator: Callable[[Tensor], Tensor] | None = None

    @property
    def encode(self) -> Callable[[Tensor], Tensor] | None:
        """The obfuscator, for an attacker that holds it: images -> payloads, without noise where that is known."""
        if self.threat not in (Threat.WHITE_BOX, Threat.CLOUD) or not isinstance(self.pairs, FreshPairs):
            return None
        return torch.no_grad()(self.module.mean) if isinstance(self.module, Noisy) else self.pairs.payload
