"""Area under the ROC curve and detections at few false alarms, against scipy and counting by hand."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from sfumato.errors import AuditError
from sfumato.lab.evaluation.detection import detection


def scores(count: int, shift: float, seed: int, *, digits: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.round(np.random.default_rng(seed).normal(shift, 1, count), digits))


@pytest.mark.parametrize("digits", [6, 0])  # with 0, most scores are equal to others
def test_the_area_is_scipys_u_statistic(digits):
    members, others = scores(400, 0.7, 0, digits=digits), scores(300, 0, 1, digits=digits)
    found = detection(members, others)
    wanted = mannwhitneyu(members.numpy(), others.numpy()).statistic / (400 * 300)
    assert found.auc == pytest.approx(wanted, abs=1e-12)
    assert found.auc_low < wanted < found.auc_high


def test_the_interval_of_the_area_is_that_of_delong():
    members, others = scores(400, 0.7, 2), scores(300, 0, 3)
    above = (members[:, None] > others).double().numpy()
    std = np.sqrt(above.mean(axis=1).var(ddof=1) / 400 + above.mean(axis=0).var(ddof=1) / 300)
    found = detection(members, others)
    assert found.auc_high - found.auc_low == pytest.approx(2 * 1.96 * std, rel=0.1)


def test_rates_are_counted_above_the_threshold_that_so_many_others_exceed():
    members, others = scores(500, 1.5, 4), scores(2_000, 0, 5)
    at_one, at_ten = np.sort(others.numpy())[::-1][[2, 20]]
    few, more = detection(members, others).rates
    assert (few.fpr, few.tpr) == (0.001, (members.numpy() > at_one).mean())
    assert (more.fpr, more.tpr) == (0.01, (members.numpy() > at_ten).mean())
    assert few.low < few.tpr < few.high and more.low < more.tpr < more.high


def test_rates_that_too_few_others_can_show_are_left_out():
    few, more = detection(scores(50, 1, 6), scores(200, 0, 7)).rates
    assert few.tpr is None and few.low is None and more.tpr is not None


def test_equal_scores_are_chance_and_an_interval_never_has_no_width_at_zero():
    found = detection(torch.zeros(1_000), torch.zeros(1_000))
    assert (found.auc, found.auc_low, found.auc_high) == (0.5, 0.5, 0.5)
    assert all(rate.tpr == 0 and rate.low == 0 and rate.high > 0.003 for rate in found.rates)


def test_the_same_seed_gives_the_same_figures():
    members, others = scores(60, 0.5, 8), scores(60, 0, 9)
    assert detection(members, others, seed=3) == detection(members, others, seed=3)
    assert detection(members, others, seed=3).auc_low != detection(members, others, seed=4).auc_low


@pytest.mark.parametrize("bad", [torch.tensor([0.0]), torch.tensor([0.0, torch.nan]), torch.zeros(2, 2)])
def test_scores_that_say_nothing_are_refused(bad):
    with pytest.raises(AuditError, match="scores"):
        detection(torch.zeros(4), bad)
