"""The one interface of all attackers that reconstruct images.

To add one: write a file in this folder with a class derived from `Attacker`, and enter it in
`sfumato.lab.attacks.registry`. It never sees a test image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.threat_models import Knowledge, Pairs, Threat
from sfumato.progress import Progress, silent

CPU = torch.device("cpu")
Reconstruct = Callable[[Tensor], Tensor]
"""The payload, (N, C, H', W') float32 -> reconstructed images (N, 3, H, W) float32 in [0, 1]."""


@dataclass(frozen=True)
class AttackBudget:
    """What an attacker may spend.

    Attributes:
        images: training images that a learned attacker sees at most, counted with repetition.
        steps: gradient steps per batch of images for attackers that optimise the image itself.
        seed: of everything random.
        device: where learned attackers are trained.
        checkpoint: a file in which a learned attacker keeps its state and from which it resumes; None for none.
        progress: see `sfumato.progress.Progress`.
        stage: what the attack is called there.
        prior_images: training images of 32x32 that an image prior sees, with repetition; see
            `sfumato.lab.attacks.prior`.
    """

    images: int
    steps: int
    seed: int = 0
    device: torch.device = CPU
    checkpoint: Path | None = None
    progress: Progress = silent
    stage: str = "attack"
    prior_images: int = 0

    def report(self, done: int, total: int) -> None:
        """Report progress, in units of the attacker's own."""
        self.progress(self.stage, done, total)


@dataclass(frozen=True)
class Prepared:
    """An attacker that has learned what it could.

    Attributes:
        reconstruct: the payload -> images.
        curve: (training images seen, mean squared error on the attacker's own held-out pairs) in time order.
        flattened: whether the curve's end is flat; None for attackers without a curve.
        params: how many parameters it has; None if it has none.
        images_seen: in training, with repetition; None if it does not learn.
    """

    reconstruct: Reconstruct
    curve: tuple[tuple[int, float], ...] = ()
    flattened: bool | None = None
    params: int | None = None
    images_seen: int | None = None


class Attacker:
    """Reconstructs images from the payload.

    Attributes:
        name: for people, and to distinguish trials.
        threats: under which threat models it can work.
        learns: whether it learns once and then reconstructs any number of images quickly.
        needs_gradients: whether it can do nothing without the obfuscator's gradients.
        uses_prior: whether it needs an image prior, which is trained once for a data set.
        refines: whether it starts from the best reconstruction that was learned before, see `Knowledge.estimate`.
    """

    name: str
    threats: frozenset[Threat] = frozenset(Threat) - {Threat.NO_PAIRS}
    learns: bool = True
    needs_gradients: bool = False
    uses_prior: bool = False
    refines: bool = False

    def evaluations(self, steps: int) -> int:
        """Return how often a large network is computed for each payload, where that takes long; for estimates."""
        return 0

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """Learn what can be learned before the attack.

        Raises:
            AuditError: the knowledge does not suffice, such as gradients where there are none.
            Interrupted: Ctrl-C or SIGTERM; the state was saved in the budget's checkpoint.
        """
        raise NotImplementedError

    def _pairs(self, knowledge: Knowledge) -> Pairs:
        if knowledge.pairs is None:
            raise AuditError(f"{self.name} needs pairs of images and the payload for them; none were given")
        return knowledge.pairs
