import os

import pytest
import torch

from scenes import images
from sfumato.lab.attacks.fit import BATCH, LEAST_STEPS, VALIDATIONS, Fitted
from sfumato.lab.attacks.registry import ATTACKERS, CHECKED, STRONG
from sfumato.lab.audit.budget import BUDGETS
from sfumato.lab.audit.sanity_checks import (
    BLUR_DB,
    IDENTITY_DB,
    PAPER_GAIN_DB,
    blur,
    decoder_checks,
    fold,
    trial_checks,
)
from sfumato.lab.audit.schema import DoneTrial
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
    """What the checks are for: an attacker that always gives mid-grey must not pass."""

    class Grey(torch.nn.Module):
        def forward(self, observed):
            return torch.full_like(observed, 0.5)

    monkeypatch.setattr(
        "sfumato.lab.attacks.decoders.fit_decoder", lambda *_, **__: Fitted(Grey(), ((0, 1.0),), True, 0)
    )
    found = decoder_checks(images(200), images(60, seed=1), images=64, device=CPU)
    names = [check for check in found if "oracle" not in check.name]
    assert len(names) == 8 and not any(check.passed for check in names)


def test_an_attacker_who_knows_more_than_the_label_from_the_oracle_fails(monkeypatch):
    test = images(60, seed=1)

    class Cheat(torch.nn.Module):
        def forward(self, observed):
            return test.images[: len(observed)].float() / 255

    monkeypatch.setattr(
        "sfumato.lab.attacks.decoders.fit_decoder", lambda *_, **__: Fitted(Cheat(), ((0, 1.0),), True, 0)
    )
    found = decoder_checks(images(200), test, images=64, device=CPU)
    assert not any(check.passed for check in found if "oracle" in check.name)


def test_answers_are_kept_until_what_they_depend_on_changes(monkeypatch):
    calls = []

    def fit(net, *_, **__):
        calls.append(1)
        return Fitted(net.eval(), ((0, 1.0),), True, 0)

    monkeypatch.setattr("sfumato.lab.attacks.decoders.fit_decoder", fit)
    train, test = images(100), images(20, seed=1)
    first = decoder_checks(train, test, images=64, device=CPU)
    assert decoder_checks(train, test, images=64, device=CPU) == first and len(calls) == 11
    decoder_checks(train, test, images=128, device=CPU)
    assert len(calls) == 22


@pytest.mark.long
@pytest.mark.skipif("SFUMATO_CIFAR10" not in os.environ, reason="needs the CIFAR-10 parquet files")
def test_the_control_matrix_passes_at_the_quick_budget():
    found = decoder_checks(
        load_images("cifar10", "train"),
        load_images("cifar10", "test"),
        images=BUDGETS["quick"].sanity_check_images,
        device=CPU,
    )
    assert all(check.passed for check in found), [check for check in found if not check.passed]
    names = {check.name for check in found}
    for setting in ("identity", "light blur", "label-only oracle"):
        assert {f"{name}, {setting}" for name in CHECKED} <= names
    assert set(STRONG) < set(CHECKED) <= set(ATTACKERS)
    assert (IDENTITY_DB, BLUR_DB) == (30, 25) and PAPER_GAIN_DB > 0, "the figures that the definitions ask for"


SEEN = [i * LEAST_STEPS * BATCH for i in range(VALIDATIONS + 1)]
SETTLED = [[n, max(0.04, 0.06 - 0.005 * i)] for i, n in enumerate(SEEN)]
FALLING = [[n, 0.06 - 0.002 * i] for i, n in enumerate(SEEN)]
RISING = [[n, 0.04 + 0.002 * i] for i, n in enumerate(SEEN)]
STILL = [[n, 0.04] for n in SEEN]


def row(threat="white-box", mse=0.04, **facts):
    known = {"key": "", "attacker": "residual decoder", "images_seen": 8_000, "curve": SETTLED, "psnr_db": 0, "ssim": 0}
    known |= {"mse": mse, "excess_leakage": 0, "test_images": 1, "threat": threat, "mse_compared": mse}
    return DoneTrial(**(known | facts))


def by_name(trials):
    return {check.name: check for check in trial_checks(trials, 0.0574)}


def test_more_pairs_that_hurt_are_noticed():
    name = "more pairs do not hurt"
    assert by_name([row("pairs", 0.05, pairs=100), row("pairs", 0.04, pairs=1_000)])[name].passed
    assert not by_name([row("pairs", 0.04, pairs=100), row("pairs", 0.05, pairs=1_000)])[name].passed
    assert by_name([row("pairs", 0.04, pairs=100)])[name].passed is None


def test_a_white_box_that_loses_to_a_black_box_is_noticed():
    name = "the white box does not lose to the black box"
    assert by_name([row(mse=0.04), row("pairs", 0.04, pairs=100)])[name].passed
    assert not by_name([row(mse=0.05), row("pairs", 0.04, pairs=100)])[name].passed
    assert by_name([row(mse=0.05)])[name].passed is None


@pytest.mark.parametrize(("worse", "better"), [(2e-12, 1e-12), (1e-12, 0.0)])
def test_errors_of_images_that_are_reconstructed_are_not_compared(worse, better):
    found = by_name([row(mse=worse), row("pairs", better, pairs=100), row("pairs", worse, pairs=1_000)])
    assert found["the white box does not lose to the black box"].passed and found["more pairs do not hurt"].passed


def test_the_joint_deobfuscator_does_not_hide_a_white_box_that_fails():
    name = "the white box does not lose to the black box"
    joint = row(mse=0.03, attacker="joint deobfuscator", curve=())
    assert not by_name([joint, row(mse=0.05), row("pairs", 0.04, pairs=100)])[name].passed


def test_trials_that_averaged_views_do_not_count():
    name = "the white box does not lose to the black box"
    trials = [
        row(mse=0.05),
        row("pairs", 0.05, pairs=100),
        row("pairs", 0, views=4),
    ]
    assert by_name(trials)[name].passed


LEARNED = "the best learned attacker has learned all that it can"


@pytest.mark.parametrize(("curve", "passed"), [(SETTLED, True), (FALLING, False), (RISING, False), (STILL, False)])
def test_the_best_learner_must_have_learned_and_come_to_an_end(curve, passed):
    assert by_name([row(mse=0.04, curve=curve)])[LEARNED].passed is passed


def test_the_best_learner_counts_and_not_the_others():
    assert by_name([row(mse=0.04), row(mse=0.05, curve=FALLING)])[LEARNED].passed
    assert not by_name([row(mse=0.04, curve=FALLING), row(mse=0.05)])[LEARNED].passed
    assert by_name([row(curve=[])])[LEARNED].passed is None


def test_an_image_that_is_reconstructed_leaves_nothing_to_learn():
    assert by_name([row(mse=1e-5, curve=FALLING)])[LEARNED].passed


@pytest.mark.parametrize(
    ("end", "fresh", "passed"),
    [(0.04, 0.0405, True), (0.04, 0.055, False), (0.0575, 0.058, True), (0.062, 0.062, False)],
)
def test_a_network_that_never_left_its_start_is_believed_if_one_from_nothing_agrees(end, fresh, passed):
    trials = [row(mse=end, curve=STILL), row(mse=fresh, attacker="paper's decoder")]
    assert by_name(trials)[LEARNED].passed is passed
