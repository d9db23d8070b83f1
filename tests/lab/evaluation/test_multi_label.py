"""Average precision and F1, against values worked out by hand and an implementation of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_average_precision, binary_f1_score

import attributes
import tiny
from sfumato.artifacts.bundle import Bundle
from sfumato.errors import BundleError, DataError
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import evaluate_classifier
from sfumato.lab.evaluation.multi_label import average_precision, evaluate_multi_label, f1
from sfumato.lab.evaluation.transfer import transfer
from synthetic import image_set


@pytest.mark.parametrize(
    ("scores", "present", "expected"),
    [
        # The example of scikit-learn's documentation: at 0.8 one of one, at 0.35 two of three.
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 1 / 2 + (1 / 2) * (2 / 3)),
        ([4.0, 3.0, 2.0, 1.0], [1, 1, 0, 0], 1.0),
        ([1.0, 2.0, 3.0, 4.0], [1, 0, 0, 0], 1 / 4),
        ([0.0, 0.0, 0.0, 0.0], [0, 1, 0, 0], 1 / 4),  # ties are taken together, whatever their order
        ([0.0, 0.0, 0.0, 0.0], [0, 0, 0, 1], 1 / 4),
        ([2.0, 1.0, 1.0, 0.0], [1, 0, 1, 0], 1 / 2 + (1 / 2) * (2 / 3)),
        ([-5.0], [1], 1.0),
    ],
)
def test_the_average_precision_is_that_of_its_definition(
    scores: list[float], present: list[int], expected: float
) -> None:
    assert average_precision(np.array(scores), np.array(present, bool)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_others_compute_the_same(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, present = random.normal(size=200).round(1), random.random(200) < 0.3  # rounded: there are ties
    wanted = binary_average_precision(torch.from_numpy(scores).sigmoid(), torch.from_numpy(present).long())
    assert average_precision(scores, present) == pytest.approx(float(wanted), abs=1e-6)
    wanted = binary_f1_score(torch.from_numpy(scores >= 0).long(), torch.from_numpy(present).long())
    assert f1(scores >= 0, present) == pytest.approx(float(wanted))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return attributes.save_classifier(tmp_path_factory.mktemp("attributes") / "classifier")


def test_each_class_is_measured_on_its_own_and_one_without_images_is_left_out(classifier: Bundle) -> None:
    """Labels of red and green are exchanged in two images, and none has blue."""
    images = torch.from_numpy(attributes.pixels(4).transpose(0, 3, 1, 2).copy())
    labels = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]])  # it predicts -, red, green, red and green
    found, by_class = evaluate_multi_label(classifier, ImageSet(images, labels, attributes.CLASSES, "here", "hash"))
    red, green, blue = by_class.classes
    assert (red.images, green.images, blue.images, found.test_images) == (2, 2, 0, 4)
    assert red.f1_plain == 1 and green.f1_plain == pytest.approx(2 * 1 / (2 + 2))
    assert red.average_precision_plain == 1 and blue.average_precision_plain is blue.f1_plain is None
    assert found.f1_plain == pytest.approx((1 + 1 / 2) / 2), "over the classes that are there"
    assert found.mean_average_precision_plain == pytest.approx((1 + float(green.average_precision_plain or 0)) / 2)
    assert found.mean_average_precision_obfuscated is None
    assert type(found).from_json(found.to_json()) == found and type(by_class).from_json(by_class.to_json()) == by_class


def test_images_without_any_class_have_no_means(classifier: Bundle) -> None:
    images = torch.zeros(3, 3, attributes.SIZE, attributes.SIZE, dtype=torch.uint8)
    nothing = torch.zeros(3, 3, dtype=torch.int64)
    found, _ = evaluate_multi_label(classifier, ImageSet(images, nothing, attributes.CLASSES, "here", "hash"))
    assert found.to_json() == {"test_images": 3}


def test_neither_kind_is_measured_as_the_other(classifier: Bundle, tmp_path: Path) -> None:
    single = image_set(4, size=(attributes.SIZE, attributes.SIZE))
    with pytest.raises(BundleError, match="is multi-label; accuracy needs one class per image"):
        evaluate_classifier(classifier, single)
    with pytest.raises(DataError, match="one class each"):
        evaluate_multi_label(classifier, single)
    with pytest.raises(BundleError, match="table of several bundles"):
        transfer([], [classifier], single)
    with pytest.raises(BundleError, match="is single-label"):
        evaluate_multi_label(tiny.save_bundles(tmp_path)[1], single)
