"""Membership inference from bundles: linear obfuscators that learned their images by heart are found out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper

import tiny
from scenes import images
from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.records import Provenance, RecipeRecord
from sfumato.errors import AuditError
from sfumato.lab.attacks import membership as scores
from sfumato.lab.audit import membership
from sfumato.lab.audit.membership import MembershipResult, infer_membership, membership_checks, trained_on
from sfumato.lab.data import ImageSet

TRAIN, TEST = (
    ImageSet(
        torch.randint(256, (count, 3, tiny.SIZE, tiny.SIZE), generator=torch.Generator().manual_seed(count)).byte(),
        torch.randint(4, (count,), generator=torch.Generator().manual_seed(count + 1)),
        tiny.LABELS,
        "noise",
        f"{count:064x}",
    )
    for count in (240, 100)
)
MEMBERS = 120


def written(folder: Path, half: str | None = "first", *, learns: bool = True, **provenance: object) -> Bundle:
    """An obfuscator whose payload makes the tiny classifier give its training images their (random) labels."""
    bundle, _ = tiny.save_bundles(folder)
    known = TRAIN.half(half) if learns else TEST
    inputs = known.images.flatten(1).numpy() / 255
    mixed = np.linalg.lstsq(inputs, 8 * np.eye(4)[known.labels], rcond=None)[0]  # (192, 4)
    matrix = mixed @ np.linalg.pinv(tiny.WEIGHT) + 0.05 * np.eye(len(mixed))[tiny.ORDER.repeat(3) * 3]
    square = np.array([-1, 3, tiny.SIZE, tiny.SIZE])
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["mixed"]),
        helper.make_node("Reshape", ["mixed", "square"], ["out"]),
    ]
    sides = [tiny.floats(name, "n", 3, tiny.SIZE, tiny.SIZE) for name in ("image", "out")]
    constants = {"matrix": matrix.astype(np.float32), "square": square}
    tiny.save_model(bundle.path / OBFUSCATOR_ONNX, nodes, constants, [sides[0]], [sides[1]])
    made = {"data_sha256": {"train": TRAIN.sha256}, "train_images": len(TRAIN.half(half)), "data": "noise"}
    facts = Provenance.from_json({**made, **provenance})
    return replace(bundle, recipe=RecipeRecord(kind=None, data={"half": half}), provenance=facts).save()


@pytest.fixture
def bundles(tmp_path) -> tuple[Bundle, Bundle, Bundle]:
    """Two bundles, on one half each, and their classifier."""
    own, other = (written(tmp_path / half, half) for half in ("first", "second"))
    return own, other, Bundle.load(tmp_path / "first" / "classifier", kind="classifier")


@pytest.fixture(autouse=True)
def without_the_check(request, monkeypatch):
    if "check" not in request.node.name:
        monkeypatch.setattr(membership, "membership_checks", lambda *_, **__: ())


def areas(found: MembershipResult) -> dict[tuple[str, str], float]:
    return {(one.subject, one.attacker): one.detection.auc for one in found.attacks}


def test_members_are_told_from_test_images_and_the_classifier_alone_does_not(bundles):
    own, _, classifier = bundles
    found = infer_membership(own, TRAIN, TEST, classifier=classifier)
    known = areas(found)
    assert known["obfuscator", "loss"] > 0.9 and found.attacks[0].infers
    assert 0.35 < known["classifier", "loss"] < 0.65 and 0.35 < known["images", "similarity of views"] < 0.65
    assert (found.attacks[0].members, found.attacks[0].others) == (100, 100)
    assert found.others_from == "test images" and found.as_json["provenance"]["train"]["images"] == 100
    assert MembershipResult.model_validate_json(found.model_dump_json()) == found


def test_with_a_reference_the_other_half_stands_against_the_members(bundles, monkeypatch):
    own, other, classifier = bundles
    seen = []
    ratio = scores.likelihood_ratio
    monkeypatch.setattr(membership, "likelihood_ratio", lambda a, b: (seen.append((a, b)), ratio(a, b))[1])
    found = infer_membership(own, TRAIN, TEST, classifier=classifier, reference=other)
    known = areas(found)
    assert known["obfuscator", "likelihood ratio"] > known["obfuscator", "loss"] > 0.9
    assert ("obfuscator", "similarity of views, less the reference's") in known
    ((mine, theirs),) = seen
    matrix = [self_logits(of) for of in (own, other)]
    images_ = torch.cat([TRAIN.half("first").images, TRAIN.half("second").images])
    labels = torch.cat([TRAIN.half("first").labels, TRAIN.half("second").labels])
    for got, weights in ((mine, matrix[0]), (theirs, matrix[1])):
        logits = images_.flatten(1).double() / 255 @ torch.from_numpy(weights).double()
        wanted = torch.log_softmax(logits, dim=1)[torch.arange(2 * MEMBERS), labels]
        assert torch.allclose(got, wanted, atol=1e-3)


def self_logits(bundle: Bundle) -> np.ndarray:
    import onnx

    (matrix,) = [t for t in onnx.load(bundle.path / OBFUSCATOR_ONNX).graph.initializer if t.name == "matrix"]
    return onnx.numpy_helper.to_array(matrix) @ tiny.WEIGHT


def test_an_obfuscator_that_learned_other_images_tells_nothing(tmp_path):
    bundle = written(tmp_path, learns=False)
    fresh = torch.randint(256, TEST.images.shape, generator=torch.Generator().manual_seed(1)).byte()
    others = replace(TEST, images=fresh)  # it learned the test images themselves
    found = infer_membership(bundle, TRAIN, others, classifier=Bundle.load(tmp_path / "classifier"))
    assert not found.attacks[0].infers and 0.3 < found.attacks[0].detection.auc < 0.7


def test_the_members_are_those_that_training_chose(tmp_path):
    bundle = written(tmp_path, "second")
    assert torch.equal(trained_on(bundle, TRAIN).images, TRAIN.half("second").images)
    recipe = RecipeRecord(data={"train_images": 100, "half": "first"}, held_out_images=10)
    made = Provenance(data_sha256={"train": TRAIN.sha256}, train_images=40)
    wanted = TRAIN.subset(100).half("first").split(10)[0]
    assert torch.equal(trained_on(replace(bundle, recipe=recipe, provenance=made), TRAIN).images, wanted.images)
    eight_bit = Provenance(data_sha256="other", others={"training": made.to_json()})
    assert torch.equal(trained_on(replace(bundle, recipe=recipe, provenance=eight_bit), TRAIN).images, wanted.images)


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ({"data_sha256": None}, "does not say which images"),
        ({"train_images": None}, "does not say which images"),
        ({"streamed": True}, "does not say which images"),
        ({"data_sha256": {"train": "0" * 64}}, "was trained on noise with hash 000000000000"),
        ({"train_images": 240}, "240 images, but its recipe chooses 120"),
    ],
)
def test_a_bundle_that_does_not_say_what_it_was_trained_on_is_refused(tmp_path, provenance, message):
    with pytest.raises(AuditError, match=message):
        infer_membership(written(tmp_path, **provenance), TRAIN, TEST)


@pytest.mark.parametrize("half", ["first", None])
def test_halves_that_are_not_complementary_are_refused(tmp_path, half):
    own, other = written(tmp_path / "a"), written(tmp_path / "b", half)
    with pytest.raises(AuditError, match=r"complementary halves.*data.half=first"):
        infer_membership(own, TRAIN, TEST, reference=other)


def test_a_reference_for_another_classifier_is_refused(bundles):
    own, other, _ = bundles
    with pytest.raises(AuditError, match="another classifier"):
        infer_membership(own, TRAIN, TEST, reference=replace(other, classifier_fingerprint="sha256:1"))


@pytest.mark.parametrize("asked", [{"images": 5}, {}])
def test_too_few_images_are_refused(bundles, asked):
    with pytest.raises(AuditError, match="at least 10 of each"):
        infer_membership(bundles[0], TRAIN, TEST if asked else TEST.subset(7), **asked)


def test_images_without_classes_leave_the_payload(bundles):
    own, _, classifier = bundles
    plain = [replace(part, names=("image",), labels=torch.zeros_like(part.labels)) for part in (TRAIN, TEST)]
    found = infer_membership(own, *plain, classifier=classifier, images=20)
    assert {one.attacker for one in found.attacks} == {"similarity of views"}


def kept(function, made: list[object]):
    def calls(*arguments):
        made.append(function(*arguments))
        return made[-1]

    return calls


def test_every_attacker_passes_its_check_and_a_broken_one_does_not(own_caches, monkeypatch):
    train = images(120)
    nets: dict[str, list[object]] = {"_by_heart": [], "_encoder": []}
    for name, made in nets.items():
        monkeypatch.setattr(membership, name, kept(getattr(membership, name), made))
    assert [check.passed for check in membership_checks(train)] == [True, True, True]
    for name, made in nets.items():
        monkeypatch.setattr(membership, name, lambda *_, made=made: made.pop(0))  # the same networks again
    monkeypatch.setattr(membership, "cached", lambda *of: of[-1]())
    monkeypatch.setattr(membership, "label_confidence", lambda predict, pixels, _: predict(pixels)[:, 0])
    monkeypatch.setattr(membership, "view_similarity", lambda observe, pixels, **_: observe(pixels).norm(dim=1))
    assert [check.passed for check in membership_checks(train)] == [False, False, False]


def test_too_few_images_for_the_check_are_refused(own_caches):
    with pytest.raises(AuditError, match="at least 20 images"):
        membership_checks(images(12))
