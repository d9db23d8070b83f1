"""The mean image of every codeword, for obfuscators with few different payloads.

See `sfumato.lab.models.codewords`; against a code of few bits this is nearly the best attacker there can be, and
against anything else it is not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.protocol import AttackBudget, Prepared
from sfumato.lab.attacks.threat_models import Knowledge, Pairs, Threat, UnavailableError
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.models.codewords import codeword_means


@dataclass(frozen=True)
class Codewords:
    """Looks the payload up among the payloads of known images."""

    name: ClassVar[str] = "codeword means"
    threats: ClassVar[frozenset[Threat]] = frozenset(Threat) - {Threat.NO_PAIRS, Threat.CLOUD}
    learns: ClassVar[bool] = True

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`; every known pair is read once."""
        if knowledge.pairs is None:
            raise AuditError("codeword means need pairs of images and the payload for them; none were given")
        try:
            estimate, counts = codeword_means(_once(knowledge.pairs, budget))
        except AuditError as error:
            raise UnavailableError(str(error)) from error
        return Prepared(
            reconstruct=torch.no_grad()(estimate),
            params=estimate.means.numel(),
            images_seen=int(counts.sum()),
        )


def _once(pairs: Pairs, budget: AttackBudget) -> Iterator[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(budget.seed)
    for part in torch.arange(len(pairs)).split(INFERENCE_BATCH):  # type: ignore[no-untyped-call]
        budget.report(int(part[0]), len(pairs))
        yield pairs.batch(part, source)
