"""Accuracy by class and the confusion matrix, against scikit-image's contingency table and counting by hand."""

import json

import numpy as np
import pytest
from skimage.metrics import contingency_table

from json_schema import schema
from sfumato.cli.classes import print_by_class
from sfumato.lab.evaluation.accuracy import classifier_by_class, obfuscator_by_class
from sfumato.lab.evaluation.by_class import ByClass, by_class
from synthetic import image_set
from tiny import LABELS, logits, own_logits, save_bundles

NAMES = ("cat", "dog", "ship", "crane", "crane")
"""Two classes of one name, as ImageNet has them, and one without images."""


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 3, 4], 200)
    plain, sent = (np.where(random.random(200) < share, labels, random.integers(0, 5, 200)) for share in (0.9, 0.5))
    return labels, plain, sent


def test_the_matrix_is_the_contingency_table(drawn):
    labels, plain, sent = drawn
    found = by_class(labels, NAMES, {"plain": plain, "obfuscated": sent})
    assert found.predicted_from == "obfuscated"
    assert np.array_equal(found.matrix, contingency_table(labels, sent).toarray())
    for place, one in enumerate(found.classes):
        mine = labels == place
        assert (one.label, one.images, one.gated) == (NAMES[place], mine.sum(), None)
        if mine.any():
            assert one.plain == pytest.approx((plain[mine] == place).mean())
            assert one.obfuscated == pytest.approx((sent[mine] == place).mean())
        else:
            assert (one.plain, one.obfuscated) == (None, None)
    images = [entry.images for entry in found.confused]
    assert images == sorted(images, reverse=True) and 0 not in images
    accuracy = {place: one.obfuscated for place, one in enumerate(found.classes) if one.images}
    assert found.worst(2) == sorted(accuracy, key=accuracy.__getitem__)[:2]


def test_it_goes_to_json_and_back_and_fits_its_schema(drawn):
    found = by_class(drawn[0], NAMES, {"plain": drawn[1]})
    raw = json.loads(json.dumps(found.to_json()))
    assert ByClass.from_json(raw) == found
    stated = schema("by-class")
    for part, rows in (("ClassAccuracy", raw.pop("classes")), ("Confused", raw.pop("confused"))):
        assert rows and set().union(*rows) <= set(stated["$defs"][part]["properties"])
        assert all(set(stated["$defs"][part]["required"]) <= set(row) for row in rows)
    assert set(raw) == {"predicted_from"} == set(stated["properties"]) - {"classes", "confused"}


def test_a_gated_pair_by_class_through_its_files(tmp_path):
    """The oracle is numpy, by the tiny networks' formulas."""
    obfuscator, classifier = save_bundles(tmp_path, threshold=0.9)
    images = image_set(40, size=(8, 8))
    images = type(images)(images.images, images.labels, LABELS, "tiny", "hash")
    evaluation, found = obfuscator_by_class(obfuscator, classifier, images)
    unit = images.images.numpy().astype(np.float32) / 255
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
    plain = logits((unit - mean) / std).argmax(axis=1)
    labels, own = images.labels.numpy(), own_logits(unit)
    confidence = 1 / np.exp(own - own.max(axis=1, keepdims=True)).sum(axis=1)
    assert 0 < (confidence < 0.9).mean() < 1, "some are sent, and some are not"
    assert found.predicted_from == "gated"
    for place, one in enumerate(found.classes):
        assert one.images == 10 and one.plain == pytest.approx((plain[labels == place] == place).mean())
    kept = confidence >= 0.9
    assert np.diag(found.matrix)[0] >= ((own.argmax(axis=1) == labels) & kept & (labels == 0)).sum()
    assert np.diag(found.matrix).sum() / 40 == pytest.approx(evaluation.accuracy_gated)
    alone, by_itself = classifier_by_class(classifier, images)
    assert np.diag(by_itself.matrix).sum() / 40 == pytest.approx(alone.accuracy_plain) == evaluation.accuracy_plain


def test_few_classes_are_all_printed_with_the_matrix_and_of_many_the_worst(drawn, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    print_by_class(by_class(drawn[0], NAMES, {"plain": drawn[1], "obfuscated": drawn[2]}))
    said = capsys.readouterr().out
    assert "payloads" in said and "with the gate" not in said and "by the predicted class" in said
    assert all(f"{place} {name}" in said for place, name in enumerate(NAMES))
    labels = np.arange(30)
    print_by_class(by_class(labels, [f"class-{k}" for k in labels], {"plain": np.where(labels < 10, 29, labels)}))
    said = capsys.readouterr().out
    assert "the 10 classes of the lowest accuracy, of 30" in said
    assert "class-9 " in said and "class-10" not in said and "column" not in said
