"""The one interface of all attackers that reconstruct images.

To add one: write a file in this folder with a class that has `name`, `threats` and `prepare`, and enter
it in `sfumato.lab.attacks.ATTACKERS`. It gets a `Knowledge` and an `Effort`, and gives back a
`Prepared`: a function from what travelled to images. It never sees a test image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.lab.attacks.threat_models import Knowledge, Threat

CPU = torch.device("cpu")
Reconstruct = Callable[[Tensor], Tensor]
"""What travelled, (N, C, H', W') float32 -> reconstructed images (N, 3, H, W) float32 in [0, 1]."""


@dataclass(frozen=True)
class Effort:
    """How hard an attacker may try.

    Attributes:
        images: training images that a learned attacker sees at most, counted with repetition.
        steps: gradient steps per batch of images for attackers that optimise the image itself.
        seed: of everything random.
        device: where learned attackers are trained.
        checkpoint: a file in which a learned attacker keeps its state and from which it goes on; None for none.
        progress: is told (done, total) now and then, in units of the attacker's own.
    """

    images: int
    steps: int
    seed: int = 0
    device: torch.device = CPU
    checkpoint: Path | None = None
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class Prepared:
    """An attacker that has learned what it could.

    Attributes:
        reconstruct: what travelled -> images.
        curve: (training images seen, mean squared error on held-out pairs of the attacker's own) in time order.
        flattened: whether the curve's end is flat; None for attackers without a curve.
        facts: parameters, steps, ... for the report.
    """

    reconstruct: Reconstruct
    curve: tuple[tuple[int, float], ...] = ()
    flattened: bool | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Attacker(Protocol):
    """Reconstructs images from what travelled."""

    @property
    def name(self) -> str:
        """For people, and to tell trials apart."""

    @property
    def threats(self) -> frozenset[Threat]:
        """Under which threat models it can work."""

    @property
    def learns(self) -> bool:
        """Whether it learns once and then reconstructs any number of images quickly."""

    def prepare(self, knowledge: Knowledge, effort: Effort) -> Prepared:
        """Learns what can be learned before the attack.

        Raises:
            AuditError: the knowledge does not suffice, such as gradients where there are none.
            Interrupted: Ctrl-C or SIGTERM; the state was saved in the effort's checkpoint.
        """
