import pytest
import torch

from scenes import images
from sfumato.errors import AuditError
from sfumato.lab.attacks import linear
from sfumato.lab.attacks.linear import Linear, solve
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FixedPairs, FreshPairs, Knowledge, Threat


def ridge(x, y, penalty):
    """The textbook's formula, on centred data, in double precision."""
    x, y = x.double() - x.double().mean(dim=0), y.double() - y.double().mean(dim=0)
    gram = x.T @ x
    scale = (x @ x.T).diagonal().mean() if len(x) < x.shape[1] else gram.diagonal().mean()
    return torch.linalg.solve(gram + penalty * scale * torch.eye(len(gram)).double(), x.T @ y)


@pytest.mark.parametrize("count", [60, 600], ids=["fewer pairs than numbers", "more pairs than numbers"])
def test_the_map_is_the_ridge_solution_of_one_of_the_penalties(count):
    known = images(count, side=8).images
    observed = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + known.float() / 255
    estimate, used = solve(FixedPairs(known, observed), seed=0)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[count - used :]
    x, y = observed[order].flatten(1), known[order].flatten(1).float() / 255
    (got,) = estimate.factors
    errors = [float((got - ridge(x, y, penalty)).abs().max()) for penalty in linear._PENALTIES]
    assert min(errors) < 1e-3


def test_a_linear_map_is_undone_on_images_it_was_not_fitted_on():
    mix = torch.randn(192, 192, generator=torch.Generator().manual_seed(1)) / 14

    def payload(x):
        return (x.flatten(1) @ mix).reshape(x.shape)

    known, asked = images(800, side=8).images, images(50, seed=1, side=8).images.float() / 255
    knowledge = Knowledge(Threat.WHITE_BOX, 8, 8, FreshPairs(known, payload))
    reconstructed = Linear().prepare(knowledge, AttackBudget(0, 0)).reconstruct(payload(asked))
    assert float((reconstructed - asked).square().mean()) < 1e-4


def test_large_messages_are_mapped_through_the_pairs(monkeypatch):
    monkeypatch.setattr(linear, "MAX_INPUTS", 100)
    known = images(50, side=8).images
    estimate, _ = solve(FixedPairs(known, known.float()), seed=0)
    assert [tuple(factor.shape) for factor in estimate.factors] == [(192, 45), (45, 192)]
    assert estimate(known.float()).shape == (50, 3, 8, 8)


def test_messages_that_tell_nothing_give_the_mean_image():
    known = images(50, side=8).images
    estimate, _ = solve(FixedPairs(known, torch.ones(50, 3, 8, 8)), seed=0)
    assert torch.allclose(estimate(torch.ones(1, 3, 8, 8))[0], estimate.base, atol=1e-5)


@pytest.mark.parametrize(
    "pairs", [None, FixedPairs(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8))]
)
def test_too_little_knowledge_is_an_error(pairs):
    with pytest.raises(AuditError, match="needs"):
        Linear().prepare(Knowledge(Threat.PAIRS, 8, 8, pairs), AttackBudget(0, 0))
