import pytest
import torch
from torch.nn import functional as F

from sfumato.artifacts.gate import Gate
from sfumato.device.predictions import softmax
from sfumato.lab.training.gate import choose_threshold, fit_temperature


def test_the_temperature_undoes_overconfidence():
    source = torch.Generator().manual_seed(0)
    right = torch.randn(20_000, 5, generator=source)
    labels = torch.multinomial(right.softmax(dim=1), 1, generator=source)[:, 0]
    assert fit_temperature(right * 3, labels) == pytest.approx(3, rel=0.05)


def test_no_other_temperature_is_better():
    source = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(300, 4, generator=source), torch.randint(0, 4, (300,), generator=source)
    logits[torch.arange(200), labels[:200]] += 2
    best = fit_temperature(logits, labels)
    losses = {t: float(F.cross_entropy(logits / t, labels)) for t in (best, 0.9 * best, 1.1 * best)}
    assert min(losses, key=lambda t: losses[t]) == best


def test_answers_that_are_always_right_end_at_the_edge_of_the_range():
    logits = torch.eye(3)
    assert fit_temperature(logits, torch.arange(3)) == pytest.approx(0.05, rel=0.01)
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(20, rel=0.01)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 0.95, 1.0])
def test_the_threshold_sends_the_share_that_was_asked_for(rate):
    logits = torch.randn(400, 6, generator=torch.Generator().manual_seed(2))
    threshold = choose_threshold(logits, rate)
    assert int(sends(logits, threshold).sum()) == round(400 * rate)


def test_answers_that_are_nearly_certain_are_told_apart_as_the_device_does():
    """A single precision's softmax is 1 for most of these, and its threshold would send nearly all."""
    margins = 15 + 4 * torch.randn(2_000, generator=torch.Generator().manual_seed(0))
    logits = torch.stack([margins, torch.zeros(2_000)], dim=1)
    assert float((logits.softmax(dim=1).amax(dim=1) == 1).float().mean()) > 0.2
    assert sends(logits, choose_threshold(logits, 0.15)).mean() == pytest.approx(0.15)


def test_images_as_sure_as_the_threshold_stay():
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert sends(logits, choose_threshold(logits, 0.5)).tolist() == [True, False, False, False]


def sends(logits: torch.Tensor, threshold: float):
    """By the device's own rule."""
    return Gate(threshold, 0.15, 100).sends(softmax(logits.numpy()))
