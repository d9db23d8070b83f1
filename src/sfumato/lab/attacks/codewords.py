"""The mean image of every codeword, for obfuscators with few different payloads.

See `sfumato.lab.models.codewords`; against a code of few bits this is nearly the best attacker there can be, and
against anything else it is not run.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared
from sfumato.lab.attacks.threat_models import Knowledge, Pairs, Threat, UnavailableError
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.models.codewords import codeword_means


class Codewords(Attacker):
    """Looks the payload up among the payloads of known images."""

    name = "codeword means"
    threats = frozenset(Threat) - {Threat.NO_PAIRS, Threat.CLOUD}

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`; every known pair is read once."""
        try:
            estimate, counts = codeword_means(_once(self._pairs(knowledge), budget))
        except AuditError as error:
            raise UnavailableError(str(error)) from error
        return Prepared(torch.no_grad()(estimate), params=estimate.means.numel(), images_seen=int(counts.sum()))


def _once(pairs: Pairs, budget: AttackBudget) -> Iterator[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(budget.seed)
    for part in torch.arange(len(pairs)).split(INFERENCE_BATCH):  # type: ignore[no-untyped-call]
        budget.report(int(part[0]), len(pairs))
        yield pairs.batch(part, source)
