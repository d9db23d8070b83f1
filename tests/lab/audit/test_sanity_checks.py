import os

import pytest
import torch

from scenes import images
from sfumato.lab.attacks.fit import Fitted
from sfumato.lab.attacks.registry import ATTACKERS, CONTROLLED, STRONG
from sfumato.lab.audit.budget import BUDGETS
from sfumato.lab.audit.sanity_checks import BLUR_DB, IDENTITY_DB, PAPER_GAIN_DB, blur, decoder_controls, fold
from sfumato.lab.data import load_images

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))


def test_folding_loses_nothing():
    x = torch.rand(4, 3, 8, 8)
    red, green, blue = fold(x).unbind(dim=1)
    green = torch.where(red < 0.5, green, 1 - green)
    assert torch.allclose(torch.stack([red, green, torch.where(green < 0.5, blue, 1 - blue)], dim=1), x, atol=1e-6)


def test_blur_keeps_the_mean_and_is_the_gaussian_that_it_says():
    dot = torch.zeros(1, 3, 15, 15)
    dot[..., 7, 7] = 1
    spread = blur(dot)[0, 0]
    assert float(spread.sum()) == pytest.approx(1, abs=1e-6)
    places = torch.arange(15.0) - 7
    assert float((spread.sum(dim=0) * places.square()).sum()) == pytest.approx(1, abs=0.05)


def test_decoders_that_learn_nothing_fail_every_control_but_the_trivial(monkeypatch):
    """What the controls are for: an attacker that always gives mid-grey must not pass."""

    class Grey(torch.nn.Module):
        def forward(self, observed):
            return torch.full_like(observed, 0.5)

    monkeypatch.setattr(
        "sfumato.lab.attacks.decoders.fit_decoder", lambda *_, **__: Fitted(Grey(), ((0, 1.0),), True, 0)
    )
    found = decoder_controls(images(200), images(60, seed=1), images=64, device=CPU)
    asked = [control for control in found if "oracle" not in control.name]
    assert len(asked) == 8 and not any(control.passed for control in asked)


def test_an_attacker_who_knows_more_than_the_label_from_the_oracle_fails(monkeypatch):
    test = images(60, seed=1)

    class Cheat(torch.nn.Module):
        def forward(self, observed):
            return test.images[: len(observed)].float() / 255

    monkeypatch.setattr(
        "sfumato.lab.attacks.decoders.fit_decoder", lambda *_, **__: Fitted(Cheat(), ((0, 1.0),), True, 0)
    )
    found = decoder_controls(images(200), test, images=64, device=CPU)
    assert not any(control.passed for control in found if "oracle" in control.name)


def test_answers_are_kept_until_what_they_depend_on_changes(monkeypatch):
    calls = []

    def fit(net, *_, **__):
        calls.append(1)
        return Fitted(net.eval(), ((0, 1.0),), True, 0)

    monkeypatch.setattr("sfumato.lab.attacks.decoders.fit_decoder", fit)
    train, test = images(100), images(20, seed=1)
    first = decoder_controls(train, test, images=64, device=CPU)
    assert decoder_controls(train, test, images=64, device=CPU) == first and len(calls) == 11
    decoder_controls(train, test, images=128, device=CPU)
    assert len(calls) == 22


@pytest.mark.long
@pytest.mark.skipif("SFUMATO_CIFAR10" not in os.environ, reason="needs the CIFAR-10 parquet files")
def test_the_control_matrix_passes_at_the_quick_budget():
    found = decoder_controls(
        load_images("cifar10", "train"),
        load_images("cifar10", "test"),
        images=BUDGETS["quick"].control_images,
        device=CPU,
    )
    assert all(control.passed for control in found), [control for control in found if not control.passed]
    asked = {control.name for control in found}
    for scene in ("identity", "light blur", "label-only oracle"):
        assert {f"{name}, {scene}" for name in CONTROLLED} <= asked
    assert set(STRONG) < set(CONTROLLED) <= set(ATTACKERS)
    assert (IDENTITY_DB, BLUR_DB) == (30, 25) and PAPER_GAIN_DB > 0, "the figures that the definitions ask for"
