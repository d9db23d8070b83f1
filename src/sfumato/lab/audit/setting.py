"""Hands every attacker what its threat model allows, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from sfumato.lab.attacks.cloud_features import CloudView
from sfumato.lab.attacks.dead_leaves import dead_leaves
from sfumato.lab.attacks.target import Target
from sfumato.lab.attacks.threat_models import (
    FixedPairs,
    FreshPairs,
    Knowledge,
    LazyPairs,
    Pairs,
    Threat,
    UnavailableError,
)
from sfumato.lab.data import ImageSet

HELD_OUT_SHARE = 0.2
"""Of the training images, in the audits of the command line, for the evaluator of reconstructions."""
MOST_HELD_OUT = 10_000
_INTERCEPTED = 5_000
_OTHER_IMAGES = 10_000
_MOST_NOISY_PAIRS = 20_000
"""Of a stochastic obfuscator: each pair is kept, as the attacker saw each image's noise but once."""


def handed(train: ImageSet, held_out_share: float = HELD_OUT_SHARE) -> ImageSet:
    """Return the training images that attackers may be handed: the first ones."""
    return train.subset(len(train) - _held(train, held_out_share))


def _held(train: ImageSet, share: float) -> int:
    return min(MOST_HELD_OUT, int(share * len(train)))


@dataclass
class AttackSetting:
    """An obfuscator, the images, and what attackers know of them.

    Attributes:
        target: the obfuscator.
        train: public images; attackers are handed `public`, which are all of them but for those held out.
        test: private images; attackers see only the payload for them.
        classifier: (N, C, H, W) float32, the payload -> logits; for the cloud's operator. None if not known.
        shadow: another obfuscator by the same recipe. None if there is none.
        other: (N, 3, H, W) uint8, images of another kind; dead leaves if None.
        seed: of which pairs are known.
        held_out_share: of the training images, which no attacker is handed, for those who judge reconstructions.
    """

    target: Target
    train: ImageSet
    test: ImageSet
    classifier: nn.Module | None = None
    shadow: Target | None = None
    other: Tensor | None = None
    seed: int = 0
    held_out_share: float = 0.0
    _last: tuple[object, Knowledge] | None = field(default=None, init=False)
    _seen: dict[int, Tensor] = field(default_factory=dict, init=False)

    @property
    def public(self) -> ImageSet:
        """See `handed`."""
        return handed(self.train, self.held_out_share)

    @property
    def held_out(self) -> ImageSet | None:
        """The training images that no attacker is handed, the last ones; None if there are none."""
        train, count = self.train, _held(self.train, self.held_out_share)
        return replace(train, images=train.images[-count:], labels=train.labels[-count:]) if count else None

    def knowledge(self, threat: Threat, *, pairs: int | None = None, views: int = 1) -> Knowledge:
        """Return what an attacker is handed.

        Args:
            threat: the threat model.
            pairs: how many pairs are known under `Threat.PAIRS`; None for as many as there are.
            views: of each image, averaged.

        Raises:
            UnavailableError: something for this threat model is missing.
        """
        key = (threat, pairs, views)
        if self._last is None or self._last[0] != key:
            self._last = key, self._knowledge(threat, pairs, views)
        return self._last[1]

    def observed(self, threat: Threat, count: int, *, views: int = 1) -> Tensor:
        """Return what the attacker sees of the first `count` test images, (count, C, H', W') float32."""
        if threat is Threat.CLOUD:
            return self._view.observe(self.test.images[:count])
        if views not in self._seen or len(self._seen[views]) < count:
            self._seen[views] = self._averaged(views).observe(self.test.images[:count])
        return self._seen[views][:count]

    def batches(self, threat: Threat, count: int, *, views: int = 1, size: int = 250) -> Iterator[Tensor]:
        """Yield what `observed` returns, in parts; the cloud's view, which is large, is not kept."""
        if threat is Threat.CLOUD:
            return (self._view.observe(part) for part in torch.split(self.test.images[:count], size))
        return iter(torch.split(self.observed(threat, count, views=views), size))

    def _knowledge(self, threat: Threat, pairs: int | None, views: int) -> Knowledge:
        train, target = self.public.images, self._averaged(views)
        hand = partial(Knowledge, threat, target.height, target.width)
        match threat:
            case Threat.PAIRS:
                return hand(self._known(pairs))
            case Threat.WHITE_BOX:
                return hand(FreshPairs(train, target.payload), target.module, deobfuscator=target.deobfuscator)
            case Threat.SHADOW:
                if self.shadow is None:
                    raise UnavailableError(
                        "no shadow: train the recipe again with another seed and pass it as the shadow"
                    )
                return hand(FreshPairs(train, self.shadow.payload))
            case Threat.OTHER_DATA:
                return hand(LazyPairs(self._others, target.payload))
            case Threat.CLOUD:
                return hand(FreshPairs(train, self._view.payload), target.module)
            case Threat.NO_PAIRS:
                half = min(_INTERCEPTED, len(train) // 2)
                overheard, public = train[self.order[:half]], train[self.order[half : 2 * half]]
                return hand(intercepted=self.target.observe(overheard), public=public)

    @cached_property
    def order(self) -> Tensor:
        """Which public images become known pairs, the first ones first, (N,) int64."""
        return torch.randperm(len(self.public), generator=torch.Generator().manual_seed(self.seed))

    def _known(self, pairs: int | None) -> Pairs:
        public = self.public.images
        if pairs is not None and pairs > len(public):
            raise UnavailableError(f"only {len(public):,} training images to make pairs of")
        if not self.target.stochastic:
            return LazyPairs(public[self.order[:pairs]], self.target.payload)
        images = public[self.order[: min(pairs or len(self.order), _MOST_NOISY_PAIRS)]]
        return FixedPairs(images, self.target.observe(images))

    @cached_property
    def _others(self) -> Tensor:
        if self.other is not None:
            return self.other
        return dead_leaves(_OTHER_IMAGES, self.target.height, self.target.width, seed=self.seed)

    @cached_property
    def _view(self) -> Target:
        """The payload with the classifier's features, which the cloud's operator sees."""
        if self.classifier is None:
            raise UnavailableError("no classifier with weights, whose features the cloud's operator sees")
        example = self.target.payload(self.train.images[:2].float() / 255)
        view = CloudView(self.classifier, example)
        return replace(self.target, payload=lambda x: view(self.target.payload(x)))

    def _averaged(self, views: int) -> Target:
        """The target, or the mean of its payloads over several obfuscations of each image."""
        if views == 1:
            return self.target
        payload = self.target.payload
        return replace(self.target, payload=lambda x: sum((payload(x) for _ in range(views - 1)), payload(x)) / views)
