"""Budgets, and shares of them."""

from __future__ import annotations

import pytest

from sfumato.lab.audit.budget import BUDGETS, shared


def test_a_share_of_a_budget_trains_every_attacker_so_much_shorter_and_says_so() -> None:
    whole = BUDGETS["standard"]
    half = shared(whole, 0.5)
    assert half.images == pytest.approx(whole.images / 2, rel=0.01)
    assert half.name == "standard x 0.5" and "0.5 times as long" in half.description
    assert [trial.attacker for trial in half.trials] == [trial.attacker for trial in whole.trials]
    assert [trial.pairs for trial in half.trials] == [trial.pairs for trial in whole.trials]  # what they know stays
    assert half.prior_images == whole.prior_images / 2
    attacked = [[trial.test_images for trial in budget.trials if trial.test_images] for budget in (whole, half)]
    assert attacked == [[300, 300, 48, 300], [150, 150, 24, 150]], "those that take long for each image"
    assert [trial.test_images for trial in shared(whole, 2).trials] == [trial.test_images for trial in whole.trials]
    assert shared(whole, 1) is whole


def test_no_share_is_so_small_that_an_attacker_does_nothing() -> None:
    least = shared(BUDGETS["quick"], 1e-9)
    for trial, before in zip(least.trials, BUDGETS["quick"].trials, strict=True):
        assert (trial.images, trial.steps) == (min(before.images, 1), min(before.steps, 1))
