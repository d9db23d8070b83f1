import pytest
import torch

from scenes import images, target
from sfumato.errors import AuditError
from sfumato.lab.attacks.codewords import Codewords
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FreshPairs, Knowledge, Threat, UnavailableError


class Bright(torch.nn.Module):
    """One bit: whether an image is bright."""

    code_bits = 1

    def forward(self, x):
        return (x.mean(dim=(1, 2, 3), keepdim=True) > 0.5).float().expand_as(x)


def test_of_one_bit_the_mean_image_of_each_value_is_reconstructed():
    known, asked = images(400).images, images(50, seed=1).images.float() / 255
    goal = target(Bright())
    prepared = Codewords().prepare(
        Knowledge(Threat.WHITE_BOX, 16, 16, FreshPairs(known, goal.payload)), AttackBudget(0, 0)
    )
    reconstructed = prepared.reconstruct(goal.payload(asked))
    assert prepared.images_seen == 400
    bright = known.float().div(255).mean(dim=(1, 2, 3)) > 0.5
    for value in (True, False):
        mine = reconstructed[(asked.mean(dim=(1, 2, 3)) > 0.5) == value]
        wanted = known[bright == value].float().div(255).mean()
        assert len(mine) and float((mine - mine[0]).abs().max()) == 0
        assert float(mine.mean()) == pytest.approx(float(wanted), abs=0.012)


def test_where_every_image_payload_as_another_thing_it_is_not_run(monkeypatch):
    monkeypatch.setattr("sfumato.lab.models.codewords.MOST_WORDS", 20)
    knowledge = Knowledge(Threat.WHITE_BOX, 16, 16, FreshPairs(images(60).images, lambda x: x))
    with pytest.raises(UnavailableError, match="no code"):
        Codewords().prepare(knowledge, AttackBudget(0, 0))


def test_pairs_are_needed():
    with pytest.raises(AuditError, match="pairs"):
        Codewords().prepare(Knowledge(Threat.WHITE_BOX, 16, 16), AttackBudget(0, 0))
