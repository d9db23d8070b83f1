import pytest

from sfumato.lab.attacks.fit import BATCH, LEAST_STEPS, LOOKS
from sfumato.lab.audit.consistency import trial_controls

SEEN = [i * LEAST_STEPS * BATCH for i in range(LOOKS + 1)]
SETTLED = [[n, max(0.04, 0.06 - 0.005 * i)] for i, n in enumerate(SEEN)]
FALLING = [[n, 0.06 - 0.002 * i] for i, n in enumerate(SEEN)]
RISING = [[n, 0.04 + 0.002 * i] for i, n in enumerate(SEEN)]
STILL = [[n, 0.04] for n in SEEN]


def row(threat="white-box", mse=0.04, **facts):
    known = {"attacker": "residual decoder", "pairs": None, "views": 1, "status": "done", "images_seen": 8_000}
    return known | {"threat": threat, "mse_compared": mse, "curve": SETTLED} | facts


def by_name(trials):
    return {control.name: control for control in trial_controls(trials, 0.0574)}


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


def test_trials_that_failed_or_averaged_views_do_not_speak():
    name = "the white box does not lose to the black box"
    trials = [
        row(mse=0.05),
        row("pairs", 0.05, pairs=100),
        row("pairs", None, status="failed"),
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
