"""The sanity checks of the generative attackers: each fails when its attacker is broken on purpose."""

import dataclasses

import pytest
import torch

from scenes import BRIEF, images
from sfumato.lab.attacks.protocol import Prepared
from sfumato.lab.attacks.registry import ATTACKERS, GENERATIVE
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.budget import BUDGETS, Trial
from sfumato.lab.audit.sampler_checks import sampler_checks

CPU, SIDE = torch.device("cpu"), 8
TRAIN, TEST = images(300, side=SIDE), images(16, seed=1, side=SIDE)
TRIALS = tuple(Trial(name, Threat.WHITE_BOX) for name in GENERATIVE)
BUDGET = dataclasses.replace(BRIEF, trials=TRIALS, sanity_check_images=640, prior_images=5_120)


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sfumato.lab.attacks.prior.WIDTHS", (8, 8, 8))
    monkeypatch.setattr("sfumato.lab.audit.sampler_checks.GAIN", 0.1)  # of 40 steps; none without the payload has any
    monkeypatch.setattr(ATTACKERS["posterior sampler"], "widths", (24, 24, 24))


def checked(budget=BUDGET):
    return {check.name: check for check in sampler_checks(TRAIN, TEST, budget=budget, device=CPU)}


def test_attackers_that_work_pass_and_those_that_a_budget_lacks_are_not_tried(monkeypatch):
    found = checked()
    assert len(found) == 7 and all(check.passed for check in found.values()), found
    monkeypatch.setattr(ATTACKERS["prior search"], "prepare", None)
    assert checked() == found, "from the cache"
    assert not checked(dataclasses.replace(BUDGET, trials=(Trial("least squares", Threat.WHITE_BOX),)))
    assert not checked(dataclasses.replace(BUDGET, sanity_check_images=0))


@pytest.mark.parametrize("name", GENERATIVE)
@pytest.mark.parametrize(
    ("gives", "passes"),
    [
        (lambda observed: torch.full((len(observed), 3, SIDE, SIDE), 0.5), "constant payload"),
        (lambda observed: TRAIN.images[: len(observed)].float() / 255, "constant payload"),
        (lambda observed: TEST.images[: len(observed)].float() / 255, None),
    ],
    ids=["grey", "other images", "cheats"],
)
def test_attackers_that_are_broken_fail(monkeypatch, name, gives, passes):
    """An attacker that ignores the payload finds nothing; one that knows the test images finds it where nothing is."""
    monkeypatch.setattr(type(ATTACKERS[name]), "prepare", lambda self, knowledge, budget: Prepared(gives))
    found = checked(dataclasses.replace(BUDGET, trials=(Trial(name, Threat.WHITE_BOX),)))
    assert len(found) >= 2
    for title, check in found.items():
        nothing = title.endswith("constant payload")
        assert check.passed is (nothing if passes else not nothing), check


def test_every_budget_with_a_prior_tries_all_three():
    for name in ("standard", "full"):
        assert set(GENERATIVE) <= {trial.attacker for trial in BUDGETS[name].trials} and BUDGETS[name].prior_images
    assert BUDGETS["standard"].prior_images == BUDGETS["full"].prior_images, "it is trained once for both"
    assert not BUDGETS["quick"].prior_images and BUDGETS["quick"].trials
