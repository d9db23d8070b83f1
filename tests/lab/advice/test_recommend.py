"""Recommendations on constructed measurements whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sfumato.lab.advice.recommend import recommend
from sfumato.lab.advice.schema import Advice, Leak, Measurements, Way

NO_IMAGE, FEW, BYTES = range(3)


def local(accuracy: float, name: str = "local net, nano", **more: Any) -> Way:
    return Way(name, "local", accuracy, 10_000, 0, 0, 0, **{"device_ms": 0.3, "bundle": "advice/nano"} | more)


def plain(accuracy: float, **more: Any) -> Way:
    return Way("plain image", "plain", accuracy, 10_000, 1, 2000, 16_000, device_ms=0.1, cloud_ms=9, **more)


def gate(accuracy: float, rate: float) -> Way:
    return Way(f"gate, {rate:.0%} sent", "gate", accuracy, 10_000, rate, rate * 2000, 16_000, threshold=0.8)


def sketch(accuracy: float, **more: Any) -> Way:
    return Way("sketch", "sketch", accuracy, 10_000, 1, 1, 8, **{"device_ms": 0.5, "cloud_ms": 9} | more)


def thumbnail(accuracy: float, size: int, **more: Any) -> Way:
    return Way(f"thumbnail, {size} bytes", "thumbnail", accuracy, 10_000, 1, size, 8.0 * size, cloud_ms=9, **more)


def measured(*ways: Way) -> Measurements:
    return Measurements("net", "my photos", "advice", 60, "identity", "accuracy", 0.1, ways)


def names(*ways: Way) -> list[str | None]:
    return [found.way for found in recommend(measured(*ways))]


def test_where_the_cloud_is_no_better_everything_stays_on_the_device():
    ways = local(0.905), gate(0.906, 0.05), sketch(0.903), thumbnail(0.89, 1000), plain(0.9)
    assert names(*ways) == ["local net, nano"] * 3
    for found in recommend(measured(*ways)):
        assert not found.provisional and found.next == "sfumato classify IMAGES --bundle advice/nano"
        assert "Nothing is sent." in found.sentences


def test_where_the_cloud_is_far_better_each_policy_has_its_own_way():
    ways = (
        *(local(0.7), sketch(0.72), gate(0.76, 0.1), gate(0.8, 0.2), gate(0.88, 0.5)),
        *(thumbnail(0.85, 400), thumbnail(0.945, 700), thumbnail(0.95, 1000), plain(0.95)),
    )
    found = recommend(measured(*ways))
    assert [one.way for one in found] == ["sketch", "gate, 20% sent", "thumbnail, 700 bytes"]
    assert "Not audited: at most 8.00 bits about an image leave." in found[NO_IMAGE].sentences
    assert found[NO_IMAGE].next.startswith("sfumato audit ") and "'my photos'" in found[NO_IMAGE].next
    assert "sfumato's client sends no such thing" in " ".join(found[FEW].sentences)
    assert "below 0.800" in " ".join(found[FEW].sentences)


def test_what_a_short_training_did_not_reach_never_speaks_for_offloading():
    ways = local(0.7, at_least=True), sketch(0.72), gate(0.8, 0.2), plain(0.95)
    for found in recommend(measured(*ways)):
        assert found.provisional and "--minutes 240" in found.next and "Provisional" in found.sentences[-1]
    for accuracy, following in ((0.95, "classify"), (0.9, "advise")):
        found = recommend(measured(local(accuracy, at_least=True), plain(0.95)))[NO_IMAGE]
        assert not found.provisional, "it can only rise"
        assert found.next.startswith(f"sfumato {following}")


def test_of_classes_that_colour_alone_separates_the_smallest_net_tells():
    """Everything is right about all images, even the smallest thumbnail."""
    nets = local(1.0), local(1.0, "local net, paper", device_ms=2.0)
    assert names(*reversed(nets), gate(1.0, 0.02), sketch(1.0), thumbnail(1.0, 100), plain(1.0)) == [nets[0].name] * 3


def test_payloads_whose_size_gives_the_class_away_count_as_padded():
    telling = thumbnail(0.95, 300, padded_bytes=900, accuracy_from_size=0.6)
    other = thumbnail(0.95, 500, padded_bytes=520, accuracy_from_size=0.14)
    ways = local(0.5), telling, other, plain(0.95)
    found = recommend(measured(*ways))[BYTES]
    assert found.way == other.name and "pad" not in " ".join(found.sentences), "0.14 is near the 0.1 of chance"
    alone = recommend(measured(local(0.5), telling, plain(0.95)))[BYTES]
    assert alone.way == telling.name and "60.0% of the images (10.0% by chance): pad" in " ".join(alone.sentences)


def test_nothing_may_meet_a_policy():
    found = recommend(measured(thumbnail(0.9, 1000), gate(0.9, 0.5), plain(0.9)))
    assert [one.way for one in found] == [None, None, "gate, 50% sent"]
    assert found[NO_IMAGE].provisional and found[NO_IMAGE].next.startswith("sfumato advise net --data 'my photos'")
    assert names() == [None] * 3


@pytest.mark.parametrize(
    ("way", "audit", "chosen"),
    [
        (sketch(0.8), Leak(0.02, "U-Net", "standard", "withstood"), "sketch"),
        (sketch(0.8), Leak(0.02, "U-Net", "standard", "leaks"), "local net, nano"),
        (sketch(0.8), Leak(0.3, "U-Net", "standard", "inconclusive"), "local net, nano"),
        (sketch(0.8), Leak(0.02, "U-Net", "quick", "inconclusive"), "sketch"),  # as without an audit
        (thumbnail(0.8, 100), Leak(0.01, "U-Net", "quick", "inconclusive"), "local net, nano"),
        (thumbnail(0.8, 100), None, "local net, nano"),
        (thumbnail(0.8, 100), Leak(0.01, "U-Net", "full", "withstood"), "thumbnail, 100 bytes"),
    ],
)
def test_an_audit_decides_what_is_recognisable(way, audit, chosen):
    assert names(local(0.7), replace(way, audit=audit), plain(0.95))[NO_IMAGE] == chosen


def test_what_an_audit_found_is_said():
    ways = local(0.7), sketch(0.95, audit=Leak(0.3, "U-Net", "standard", "leaks")), plain(0.95)
    found = recommend(measured(*ways))[BYTES]
    said = " ".join(found.sentences)
    assert found.way == "sketch" and "Audited, leaks: an excess leakage of at least 0.30." in said
    assert "sends no such thing" not in said, "sfumato's client sends sketches"


def test_a_longer_call_has_the_same_options_and_a_net_that_is_missing_may_become_as_good():
    options = "--budget", "large", "--allow-outside"
    one = replace(measured(local(0.7), sketch(0.8), plain(0.95)), options=options)
    assert not recommend(one)[NO_IMAGE].provisional
    assert "--allow-outside -o advice/audits/sketch" in recommend(one)[NO_IMAGE].next
    found = recommend(replace(one, missing=("device-large",)))[NO_IMAGE]
    assert found.provisional and found.next.endswith("-o advice --budget large --allow-outside")


def test_less_than_the_standard_error_is_no_reason_to_send():
    few = replace(sketch(0.73), test_images=100)
    assert names(replace(local(0.7), test_images=100), few)[NO_IMAGE] == "local net, nano"
    assert names(local(0.7), sketch(0.73))[NO_IMAGE] == "sketch"


def test_advice_survives_being_written(tmp_path):
    found = measured(local(0.7, at_least=True), replace(sketch(0.7), audit=Leak(0.02, "U-Net", "full", "withstood")))
    advice = Advice(found, recommend(found), left_out=("no time",))
    advice.write(tmp_path / "advice.json")
    assert Advice.read(tmp_path / "advice.json") == advice
    assert Advice.read(tmp_path / "none.json") is None
