"""Halves of a set of images."""

import pytest
import torch

from sfumato.errors import DataError
from synthetic import image_set


@pytest.mark.parametrize("count", [20, 21])
def test_halves_are_complementary_random_and_always_the_same(count):
    images = image_set(count)
    first, second = images.half("first"), images.half("second")
    assert len(second) == count // 2 and torch.equal(first.images, images.half("first").images)
    places = [int((images.images == one).flatten(1).all(dim=1).nonzero()) for one in (*first.images, *second.images)]
    assert sorted(places) == list(range(count)) and places != sorted(places)
    assert first.sha256 == images.sha256 and images.half(None) is images


def test_one_image_has_no_halves():
    with pytest.raises(DataError, match="cannot be held out"):
        image_set(1).half("second")


def test_other_seeds_sample_other_images():
    images = image_set(40)
    assert not torch.equal(images.split(10)[1].images, images.split(10, seed=1)[1].images)
