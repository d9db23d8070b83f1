"""What is audited: anything that turns an image into a payload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.gate import Gate
from sfumato.device.predictions import softmax
from sfumato.errors import AuditError

Obfuscate = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) float32 in [0, 1] -> the payload, (N, C, H', W') float32."""


@runtime_checkable
class Noisy(Protocol):
    """A stochastic obfuscator that states its noise, which a certificate needs.

    The payload is `mean(images) + noise`, every number's noise independent.
    """

    noise_kind: str
    """"gaussian" or "laplace"."""

    def mean(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float in [0, 1] -> the payload without the noise; differentiable."""

    def noise_std(self) -> Tensor:
        """Standard deviation of each number's noise, of the shape of one payload (C, H', W')."""


@runtime_checkable
class NoisyWithin(Protocol):
    """A stochastic obfuscator whose output depends on the image through a noisy code alone.

    What bounds the information in the code bounds it in the payload, whatever is done to the code afterwards.

    Source: the data processing inequality, Cover and Thomas 2006, theorem 2.8.1; for Fisher information Zamir 1998.
    """

    noisy_code: Noisy
    """The code as if it were the payload."""


@runtime_checkable
class Coded(Protocol):
    """An obfuscator whose output depends on the image through a code of a few bits alone."""

    code_bits: int
    """How many bits: the payload takes at most `2 ** code_bits` different values.

    An attribute `code_values`, where there is one, says how many it really takes at most.
    """


@dataclass(frozen=True)
class LocalClassifier:
    """The on-device predictions, and the gate that says when they are final.

    Attributes:
        logits: images (N, 3, H, W) float32 in [0, 1] -> calibrated logits (N, classes) float32; no gradients.
    """

    logits: Callable[[Tensor], Tensor]
    gate: Gate

    def sends(self, logits: Tensor) -> Tensor:
        """Logits (N, classes) -> which images are sent, (N,) bool."""
        return torch.from_numpy(self.gate.sends(softmax(logits.numpy())))


@dataclass(frozen=True)
class Target:
    """An obfuscator as the audit sees it.

    Attributes:
        name: for people.
        height: rows of the images it takes.
        width: columns of the images it takes.
        payload: the function, as it is shipped; without gradients.
        module: the same function in torch, differentiable, in evaluation mode; None if only the function is known.
        stochastic: whether two calls on one image differ.
        fingerprint: of what it computes, hex; empty if unknown.
        kind: "obfuscator", "baseline", or "identity" for the plain image; its role in a plot.
        refit: number from 1 on -> another target by the same recipe with another seed; None where that takes
            training.
        gate: which images are handled on-device; None if every image is sent.
        bundle: that is handed out, and may hold training images; None if it is none.
        deobfuscator: the payload -> images (N, 3, H, W) float32, as the network that it was trained against gives
            them; None if there is none.
    """

    name: str
    height: int
    width: int
    payload: Obfuscate
    module: nn.Module | None = None
    stochastic: bool = False
    fingerprint: str = ""
    kind: str = "obfuscator"
    refit: Callable[[int], Target | None] = lambda seed: None
    gate: LocalClassifier | None = None
    bundle: Bundle | None = None
    deobfuscator: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def observe(self, images: Tensor, *, batch: int = 250) -> Tensor:
        """Return the payload for images, a batch at a time: (N, 3, H, W) uint8 -> (N, C, H', W') float32.

        Raises:
            AuditError: payloads of several sizes, not one for each image, or not finite.
        """
        parts = [self.payload(part.float() / 255) for part in images.split(batch)]  # type: ignore[no-untyped-call]
        shapes = sorted({tuple(part.shape[1:]) for part in parts})
        if len(shapes) > 1 or sum(map(len, parts)) != len(images):
            raise AuditError(
                f"{self.name} gives {sum(map(len, parts))} payloads of sizes {', '.join(map(str, shapes))} for "
                f"{len(images)} images; one for each, all of one size, is expected"
            )
        observed = torch.cat(parts)
        if not bool(observed.isfinite().all()):
            broken = int((~observed.isfinite().flatten(1).all(dim=1)).sum())
            raise AuditError(f"{self.name} gives numbers that are not finite for {broken} of {len(images)} images")
        return observed
