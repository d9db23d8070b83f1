"""Hand-made audits, whose mixtures can be worked out: 89 % on the device, 91.38 % in the cloud."""

from pathlib import Path

import pytest

from fakes import fake_audit, gate, point
from sfumato.lab.audit.points import collect, points_of
from sfumato.lab.report.tradeoff import row, rows_of, sentence, verdict

LOCAL, PLAIN, LABEL_ONLY = 0.89, 0.9138, 0.0574


def audited(*figures, **changes):
    """One point for each (accuracy, excess leakage)."""
    made = []
    for accuracy, leakage in figures:
        utility = {"accuracy_obfuscated": accuracy} | changes
        made.append(fake_audit(mse=LABEL_ONLY * (1 - leakage), utility=utility))
    return [p for p in points_of({Path(f"{n}.json"): audit for n, audit in enumerate(made)}) if p.role == "other"]


def test_the_mixture_is_the_one_at_the_leakage_that_was_found():
    (only,) = rows_of(audited((0.9, 0.5)))
    assert only.mixture.mean == pytest.approx(LOCAL + 0.5 * (PLAIN - LOCAL))
    assert only.gain.mean == pytest.approx(0.9 - 0.9019)
    assert (only.pays_off, only.better, only.seeds, only.gain.std) == ("no", 0, 1, None)


def test_a_gate_before_the_plain_image_counts_where_it_is_better():
    curve = [{"offload_rate": 0.1, "excess_leakage": 0.1, "accuracy": 0.93}]
    (only,) = rows_of(audited((0.92, 0.1), gated_plain=curve))
    assert only.mixture.mean == pytest.approx(0.93) and only.pays_off == "no"
    assert "least sure of leaks as much and gives 93.0 %, so a user is better off without it" in sentence(only)


@pytest.mark.parametrize(
    ("accuracies", "pays_off"),
    [
        ((0.91, 0.912, 0.914), "yes"),
        ((0.91, 0.912, 0.892), "unclear"),  # the mixture at 0.1 gives 89.24 %
        ((0.9, 0.88, 0.88), "no"),
        ((0.8925,), "no"),  # above it by a hundredth of a point: chance
        ((0.8935,), "yes"),
    ],
)
def test_every_seed_has_to_be_better(accuracies, pays_off):
    found = row("x", audited(*((accuracy, 0.1) for accuracy in accuracies)))
    assert found.pays_off == pays_off
    assert found.better == sum(a - 0.89238 >= 0.001 for a in accuracies)


def test_means_and_standard_deviations_are_those_of_the_seeds():
    found = row("x", audited((0.9, 0.1), (0.92, 0.3)))
    assert found.accuracy.mean == pytest.approx(0.91)
    assert found.accuracy.std == pytest.approx(0.02 / 2**0.5)  # of two: their difference over the root of two
    assert found.excess_leakage.mean == pytest.approx(0.2)
    assert found.gain.mean == pytest.approx(0.91 - (LOCAL + 0.2 * (PLAIN - LOCAL)))


def test_that_it_pays_off_is_said_with_what_it_rests_on():
    rows = [row("a", audited((0.8, 0.1))), row("b", audited((0.9138, 0.1)))]
    pays_off, (why, rests) = verdict(rows)
    assert pays_off == "yes"
    assert "pays off at 1 of 2 points, as far as these attackers got" in why
    assert "b: 91.4 % of the images are classified correctly at an excess leakage of at least 0.10" in why
    assert "2.1 percentage points more" in why  # 91.38 - 89.238
    assert 'budget "standard"' in rests and "one training" in rests and "same test images" in rests


def test_that_it_does_not_names_the_closest():
    pays_off, (why, _) = verdict([row("a", audited((0.8, 0.1))), row("b", audited((0.88, 0.0)))])
    assert pays_off == "no"
    assert "does not pay off at any of 2 points: b comes closest, 1.0 percentage points below" in why


def test_neither_is_said_too():
    pays_off, (why, rests) = verdict([row("a", audited((0.91, 0.1), (0.89, 0.1)))])
    assert pays_off == "unclear"
    assert "not clear" in why and "1 of 2 seeds do better" in why and "mean over 2 seeds" in rests


def test_without_an_on_device_baseline_nothing_is_claimed():
    points = audited((0.9, 0.1), accuracy_local=None)
    pays_off, (only,) = verdict(rows_of(points))
    assert pays_off == "unknown" and "no on-device baseline was measured" in only
    assert "is not known" in sentence(rows_of(points)[0])


def test_ends_are_no_rows_and_a_gate_has_its_own(tmp_path):
    fake_audit(gate=gate(accuracy_gated=0.912, excess_leakage_mean=0.03)).write(tmp_path / "a.json")
    points = [*collect(tmp_path), point("plain, 10 %", 0.9, 0.1, "gated")]
    assert [found.name for found in rows_of(points)] == ["cifar10-fake", "cifar10-fake, gated"]
    assert rows_of(points)[1].mixture.mean == pytest.approx(LOCAL + 0.03 * (PLAIN - LOCAL))
