"""The average of weights against its formula, and that a training keeps, validates and resumes it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sfumato.lab.training.weight_average import WeightAverage


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    made[2].requires_grad_(False)
    made[3].requires_grad_(False)
    return made


def moved(module: nn.Module) -> None:
    """As a step of a training would."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            value.copy_(torch.randn(value.shape) if value.is_floating_point() else value + 1)
            assert name


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_it_is_the_exponential_average_with_a_share_that_grows_with_the_steps(decay):
    module = net()
    average = WeightAverage(module, decay)
    wanted = {name: value.double().clone() for name, value in module.state_dict().items()}
    for step in range(1, 9):
        moved(module)
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            wanted[name] = kept * wanted[name] + (1 - kept) * value.double()
    found = average.state_dict()
    assert found.keys() == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    for name, value in found.items():
        assert torch.allclose(value.double(), wanted[name], atol=1e-5), name


def test_it_takes_the_networks_place_and_gives_it_back():
    module = net()
    average = WeightAverage(module, 0.9)
    moved(module)
    average.update(1)
    before, kept = copy.deepcopy(module.state_dict()), copy.deepcopy(average.state_dict())
    with average.applied():
        inside = copy.deepcopy(module.state_dict())
    assert all(torch.equal(inside[name], value) for name, value in kept.items())
    assert all(torch.equal(inside[name], before[name]) for name in before.keys() - kept.keys())
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    assert all(torch.equal(average.state_dict()[name], value) for name, value in kept.items())


def test_its_state_is_restored_and_that_of_another_network_refused():
    module = net()
    average, other = WeightAverage(module, 0.9), WeightAverage(module, 0.9)
    moved(module)
    average.update(1)
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    assert all(torch.equal(other.state_dict()[name], value) for name, value in average.state_dict().items())
    with pytest.raises(ValueError, match="other weights"):
        other.load_state_dict({"0.weight": torch.zeros(2, 3)})
