"""Synthetic faces: always the same ones, with attributes that are visible in them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sfumato.errors import DataError
from sfumato.lab.data import faces, load_images, load_train_test

FREE = ("glasses", "hat", "beard", "skin", "hair", "style")


@pytest.fixture
def few(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "COUNTS", {"train": 60, "test": 20})
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))


def chi_square(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    """Pearson's statistic of independence, and its degrees of freedom."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    return float(((table - expected) ** 2 / expected).sum()), (table.shape[0] - 1) * (table.shape[1] - 1)


def test_the_same_image_comes_whenever_and_at_whatever_place_it_is_synthesised():
    some = faces.synthesise("faces", "train", range(3, 8), (32, 32))
    assert some.shape == (5, 3, 32, 32) and some.dtype == np.uint8
    assert np.array_equal(some[2], faces.synthesise("faces", "train", range(5, 6), (32, 32))[0])
    assert not np.array_equal(some, faces.synthesise("faces", "test", range(3, 8), (32, 32)))
    assert len({image.tobytes() for image in some}) == 5


def test_a_face_is_the_same_at_every_size_and_cut_from_the_middle_where_oblong():
    large, small = (faces.synthesise("faces", "train", range(4), size).astype(float) for size in ((64, 64), (32, 32)))
    reduced = large.reshape(4, 3, 32, 2, 32, 2).mean((3, 5))
    assert np.corrcoef(reduced.ravel(), small.ravel())[0, 1] > 0.97
    oblong = faces.synthesise("faces", "train", range(4), (64, 48))
    assert oblong.shape == (4, 3, 64, 48)
    assert np.array_equal(oblong, large[:, :, :, 8:56])


@pytest.mark.parametrize("split", faces.COUNTS)
@pytest.mark.parametrize("name", [*FREE, "identity"])
def test_nothing_depends_on_the_expression(split, name):
    known = faces.factors("faces", split)
    statistic, freedom = chi_square(known["expression"], known[name])
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_glasses_and_hats_depend_on_nothing_at_all():
    known = faces.factors("faces", "train")
    for a, b in itertools.product(("glasses", "hat"), ("glasses", "hat", "identity", "skin")):
        if a != b:
            statistic, freedom = chi_square(known[a], known[b])
            assert statistic < freedom + 4 * np.sqrt(2 * freedom), (a, b)


@pytest.mark.parametrize("split", faces.COUNTS)
def test_in_the_correlated_set_glasses_go_with_the_expression_and_nothing_else_does(split):
    known = faces.factors("faces-correlated", split)
    wide_eyed = (known["expression"] == 1) | (known["expression"] == 3)
    assert np.corrcoef(wide_eyed, known["glasses"])[0, 1] == pytest.approx(0.8, abs=0.03)
    for name in FREE[1:]:
        statistic, freedom = chi_square(known["expression"], known[name])
        assert statistic < freedom + 4 * np.sqrt(2 * freedom), name


def test_both_splits_show_the_same_people_who_look_the_same_in_different_images():
    appearances = {}
    for split in faces.COUNTS:
        known = faces.factors("faces", split)
        assert set(known["identity"]) == set(range(faces.PEOPLE))
        for who, *appearance in zip(
            *(known[name] for name in ("identity", "skin", "hair", "style", "beard")), strict=True
        ):
            assert appearances.setdefault(who, appearance) == appearance
    images = [faces.synthesise("faces", split, range(40), (16, 16)) for split in faces.COUNTS]
    assert not {image.tobytes() for image in images[0]} & {image.tobytes() for image in images[1]}


def test_what_is_said_of_a_face_can_be_seen_in_it():
    """Least squares on colours and edges, which knows nothing of faces, finds it above the most frequent value."""
    images = faces.synthesise("faces", "train", range(1200), (24, 24)).astype(float) / 255
    known = faces.factors("faces", "train")
    grey = images.mean(1)
    edges = np.abs(np.diff(grey, axis=1))[:, :, :-1] + np.abs(np.diff(grey, axis=2))[:, :-1]
    inputs = np.concatenate([np.ones((1200, 1)), images.reshape(1200, -1), edges.reshape(1200, -1)], axis=1)
    first, last = inputs[:900], inputs[900:]
    inverse = np.linalg.inv(first @ first.T + 30 * np.eye(900))
    for name, margin in {"glasses": 0.08, "hat": 0.05, "beard": 0.05, "skin": 0.15, "style": 0.05}.items():
        values = known[name][:1200]
        weights = first.T @ (inverse @ np.eye(values.max() + 1)[values[:900]])
        accuracy = ((last @ weights).argmax(1) == values[900:]).mean()
        majority = (values[900:] == np.bincount(values[:900]).argmax()).mean()
        assert accuracy > majority + margin, (name, accuracy, majority)


def test_glasses_are_where_the_eyes_are():
    """Averaged over many, images with glasses differ from those without around the eyes, not at the chin."""
    images = faces.synthesise("faces", "train", range(1200), (32, 32)).astype(float).mean(1)
    worn = faces.factors("faces", "train")["glasses"][:1200].astype(bool)
    edges = np.abs(np.diff(images, axis=2))
    gained = (edges[worn].mean(0) - edges[~worn].mean(0))[:, 7:24].mean(1)
    assert 10 <= gained.argmax() <= 16
    assert gained[10:17].mean() > 4 * abs(gained[22:].mean())


def test_it_loads_by_name_like_any_data_set_and_is_synthesised_once(few, monkeypatch):
    train, test, extra = load_train_test("faces", size=(16, 16), attributes=("glasses", "identity"))
    assert (len(train), len(test), train.names, train.source) == (60, 20, faces.NAMES["expression"], "faces")
    assert train.images.shape == (60, 3, 16, 16)
    for split, place in (("train", 0), ("test", 1)):
        known = faces.factors("faces", split)
        assert extra["glasses"][place].tolist() == known["glasses"].tolist()
        assert extra["identity"][place].tolist() == known["identity"].tolist()
    monkeypatch.delattr(faces, "synthesise")
    again = load_images("faces", "train", size=(16, 16), label_column="skin")
    assert torch.equal(again.images, train.images) and again.names == faces.NAMES["skin"]
    assert again.sha256 != train.sha256
    asked = load_train_test("faces", size=(16, 16), label_column="glasses")[1]
    assert asked.labels.tolist() == extra["glasses"][1].tolist()


def test_the_default_size_is_64_pixels(few):
    assert load_images("faces-correlated", "test").images.shape == (20, 3, 64, 64)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"label_column": "shoes"}, "no column 'shoes'; it has expression, glasses"),
        ({"image_column": "img"}, "called 'image'"),
        ({"size": (8, 8)}, "8x8 pixels show nothing"),
    ],
)
def test_says_what_is_wrong(few, facts, message):
    with pytest.raises(DataError, match=message):
        load_images("faces", "test", **facts)
