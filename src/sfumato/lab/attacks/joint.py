"""The deobfuscator that the obfuscator was trained against: the paper's only attacker, and no training for us.

An obfuscator may have learned to mislead just this one, so that attackers trained afterwards do better; where they have
not learned enough, it is the better lower bound.

Source: Leroux et al. 2018 (Privacy Aware Offloading of Deep Neural Networks), section 3.
"""

from __future__ import annotations

from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared
from sfumato.lab.attacks.threat_models import Knowledge, Threat, UnavailableError


class JointDeobfuscator(Attacker):
    """Reconstructs with what training left behind; runs only where there is a deobfuscator."""

    name = "joint deobfuscator"
    threats = frozenset({Threat.WHITE_BOX})

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`."""
        if (deobfuscator := knowledge.deobfuscator) is None:
            raise UnavailableError("no deobfuscator was trained with it")
        return Prepared(lambda payload: deobfuscator(payload).clamp(0, 1))
