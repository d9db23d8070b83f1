"""Score-only gradients against true ones, and decoded images that are tuned until the endpoint agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interrupting import interrupted_at
from sfumato.errors import QueryBudgetExhausted
from sfumato.lab.models import Sketcher
from sfumato.lab.training.blackbox.tuning import guided_directions, score_gradient, tune


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 4 * 4, 5)).double()


def losses(model: nn.Module, wanted: Tensor) -> Any:
    return lambda x: F.cross_entropy(model(x), wanted, reduction="none")


def test_on_average_it_is_the_true_gradient() -> None:
    model, wanted = net(), torch.tensor([1, 4])
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (true,) = torch.autograd.grad(losses(model, wanted)(x).sum(), x)
    with torch.no_grad():
        u = torch.randn(4000, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        found = score_gradient(losses(model, wanted), x.detach(), u, step=1e-3)
    for ours, theirs in zip(found.flatten(1), true.flatten(1), strict=True):
        # M directions in d dimensions leave an error of about sqrt(d / M) of its length.
        assert float((ours - theirs).norm() / theirs.norm()) < 2 * (x[0].numel() / 4000) ** 0.5


def test_along_one_direction_it_is_the_exact_slope() -> None:
    matrix = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, u = torch.ones(1, 12, dtype=torch.float64), torch.zeros(1, 1, 12, dtype=torch.float64)
    u[0, 0, 3] = 1
    found = score_gradient(
        lambda y: (y @ matrix * y).sum(dim=1), x, u, step=0.5
    )  # a two-sided slope has no third order
    wanted = torch.zeros(1, 12, dtype=torch.float64)
    wanted[0, 3] = float((matrix[3] + matrix[:, 3]).sum())
    assert torch.allclose(found, wanted)


def test_directions_have_unit_size_and_lean_on_the_prior() -> None:
    prior = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prior[2] = 0  # nothing known
    u = guided_directions(prior, share=0.5, coarse=8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(u.square().mean(dim=(1, 2, 3)), torch.ones(3), atol=1e-4)
    along = F.cosine_similarity(u.flatten(1), prior.flatten(1))
    assert along[:2] == pytest.approx(0.5**0.5, abs=1e-3)
    assert torch.isfinite(u).all() and along[2] == 0
    alone = guided_directions(prior, share=1.0, coarse=8, generator=torch.Generator().manual_seed(1))
    assert F.cosine_similarity(alone.flatten(1), prior.flatten(1))[:2] == pytest.approx(1.0, abs=1e-4)


class Endpoint:
    """A classifier by mean colour, with query-only access; counts its queries."""

    def __init__(self, queries: int, answers: str = "scores") -> None:
        self.queries, self.answers, self.spent, self.asked_after = queries, answers, 0, 0

    def __call__(self, images: Tensor) -> Tensor:
        assert not images.requires_grad and float(images.min()) >= 0 and float(images.max()) <= 1
        if self.spent + len(images) > self.queries:
            raise QueryBudgetExhausted("spent")
        self.spent += len(images)
        logits = 60 * (images.mean(dim=(2, 3)) - 0.5)
        if self.answers == "scores":
            return logits.log_softmax(dim=1)
        return F.one_hot(logits.argmax(dim=1), 3).float().clamp_min(1e-6).log()


def sketch() -> tuple[Sketcher, Tensor, Tensor]:
    torch.manual_seed(0)
    sketcher = Sketcher(32, 32, classes=3, bits=3)
    codes = torch.cat([torch.eye(3).repeat(2, 1), torch.tensor([[1.0]] * 3 + [[-1.0]] * 3)], dim=1)
    return sketcher, codes, torch.full((6,), 1 / 6)


@pytest.mark.parametrize("answers", ["scores", "label"])
def test_decoded_images_are_tuned_until_the_endpoint_predicts_as_the_device(answers: str, tmp_path: Path) -> None:
    sketcher, codes, weights = sketch()
    before = {name: value.clone() for name, value in sketcher.encoder.state_dict().items()}
    endpoint = Endpoint(30_000, answers)
    blind = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))  # a surrogate that knows nothing
    result = tune(sketcher, endpoint, blind, codes, weights, queries=20_000, seed=0, checkpoint=tmp_path / "c.pt")  # type: ignore[arg-type]
    assert result["agreement_before_tuning"] < 0.9 and result["agreement_after_tuning"] == pytest.approx(1.0)
    assert result["queries_tuning"] == endpoint.spent <= 20_000
    predicted = endpoint(sketcher.eval().decode(codes).detach()).argmax(dim=1)
    assert predicted.tolist() == [0, 1, 2, 0, 1, 2]  # what it kept is what it says
    after = sketcher.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_spent_budget_keeps_the_best_decoder(tmp_path: Path) -> None:
    sketcher, codes, weights = sketch()
    blind = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    result = tune(sketcher, Endpoint(200), blind, codes, weights, queries=10_000, seed=0, checkpoint=tmp_path / "c.pt")  # type: ignore[arg-type]
    assert result["agreement_after_tuning"] >= result["agreement_before_tuning"]
    assert 0 < result["queries_tuning"] <= 200


def test_interrupted_tuning_resumes_to_the_same_decoder(tmp_path: Path) -> None:
    blind = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))

    def tuned(name: str, **how: Any) -> dict[str, Tensor]:
        sketcher, codes, weights = sketch()
        how = {"queries": 280, "seed": 0, "checkpoint": tmp_path / name, **how}
        tune(sketcher, Endpoint(10_000), blind, codes, weights, **how)  # type: ignore[arg-type]
        return sketcher.state_dict()

    whole = tuned("whole.pt")
    with interrupted_at(3):
        tuned("halves.pt")
    resumed = tuned("halves.pt")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert not torch.equal(whole["draw.1.weight"], sketch()[0].state_dict()["draw.1.weight"])
