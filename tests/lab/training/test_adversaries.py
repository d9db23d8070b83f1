import pytest
import torch
from torch import nn

from sfumato.lab.training.adversaries import Attackers, attacker_to_restart, restart


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0 + self.value


def test_the_best_attacker_stands_for_all():
    attackers = Attackers(Constant(1.0), Constant(2.0), Constant(3.0))
    x = torch.zeros(2, 3, 4, 4)
    assert attackers.best == 0, "none has begun"
    attackers.note(torch.tensor([0.3, 0.1, 0.2]))
    assert attackers.best == 1 and torch.equal(attackers(x), torch.full_like(x, 2.0))


def test_errors_run_on_and_one_lucky_step_changes_little():
    attackers = Attackers(Constant(1.0), Constant(2.0))
    attackers.note(torch.tensor([0.3, 0.1]))
    attackers.note(torch.tensor([0.0, 0.5]))
    assert torch.allclose(attackers.errors, torch.tensor([0.3 * 0.95, 0.1 * 0.95 + 0.5 * 0.05]))
    assert attackers.best == 1


def test_one_that_begins_anew_is_not_the_best_until_it_has_shown_it():
    attackers = Attackers(Constant(1.0), Constant(2.0))
    attackers.note(torch.tensor([0.1, 0.3]))
    attackers.errors[0] = torch.inf
    assert attackers.best == 1
    attackers.note(torch.tensor([0.4, 0.3]))
    assert torch.allclose(attackers.errors, torch.tensor([0.4, 0.3])), "the first step counts whole"


def test_the_running_errors_are_part_of_the_state():
    attackers = Attackers(Constant(1.0), Constant(2.0))
    attackers.note(torch.tensor([0.3, 0.1]))
    again = Attackers(Constant(0.0), Constant(0.0))
    again.load_state_dict(attackers.state_dict())
    assert again.best == 1 and float(again.nets[1].value.detach()) == 2.0


@pytest.mark.parametrize(
    ("every", "attackers", "turns"),
    [
        (None, 2, [None] * 7),
        (1, 1, [None, 0, 0, 0, 0, 0, 0]),
        (1, 3, [None, 0, 1, 2, 0, 1, 2]),
        (2, 2, [None, None, 0, None, 1, None, 0]),
    ],
)
def test_attackers_restart_in_turn(every, attackers, turns):
    assert [attacker_to_restart(epoch, every=every, attackers=attackers) for epoch in range(7)] == turns


def test_a_restart_gives_fresh_weights_the_same_everywhere_and_draws_nothing_from_the_training():
    def build() -> nn.Module:
        return nn.Conv2d(3, 4, 3)

    one, other = build(), build()
    kept = list(one.parameters())
    torch.manual_seed(5)
    restart(one, build, seed=3)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    restart(other, build, seed=3)
    assert torch.equal(one.weight, other.weight)
    assert all(a is b for a, b in zip(one.parameters(), kept, strict=True)), "the optimiser still knows them"
    restart(other, build, seed=4)
    assert not torch.equal(one.weight, other.weight)
