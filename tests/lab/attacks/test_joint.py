import pytest
import torch

from sfumato.errors import AuditError
from sfumato.lab.attacks.joint import JointDeobfuscator
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import Knowledge, Threat, UnavailableError


def test_it_reconstructs_as_training_left_it_and_stays_in_range():
    known = Knowledge(Threat.WHITE_BOX, 2, 2, deobfuscator=lambda payload: 2 - 3 * payload)
    found = JointDeobfuscator().prepare(known, AttackBudget(0, 0)).reconstruct(torch.tensor([0.0, 0.5, 0.9]))
    assert torch.equal(found, torch.tensor([1.0, 0.5, 0.0]))


def test_without_one_it_is_not_run():
    with pytest.raises(UnavailableError, match="no deobfuscator") as refused:
        JointDeobfuscator().prepare(Knowledge(Threat.WHITE_BOX, 2, 2), AttackBudget(0, 0))
    assert isinstance(refused.value, AuditError)
