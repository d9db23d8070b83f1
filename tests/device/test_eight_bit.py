"""From the classifier's input back to the 8-bit image that was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.device import Obfuscator
from sfumato.device.image import from_pixels, to_pixels
from sfumato.errors import BundleError, ImageError

EVERY_LEVEL = np.stack(3 * [np.arange(256, dtype=np.uint8).reshape(1, 16, 16)], axis=3)
numbers = st.floats(-3, 3)
deviations = st.floats(1e-3, 3)


@given(st.tuples(numbers, numbers, numbers), st.tuples(deviations, deviations, deviations))
def test_every_level_comes_back_exactly_whatever_the_normalisation(mean, std):
    look = Preprocessing(16, 16, mean, std)
    unit = EVERY_LEVEL.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    drawn = look.normalize(unit)
    for how in ("exact", "rounded"):
        np.testing.assert_array_equal(to_pixels(drawn, look, how), EVERY_LEVEL)
    np.testing.assert_array_equal(from_pixels(EVERY_LEVEL, look), drawn)


@pytest.mark.parametrize(("off", "rounds"), [(0.05, True), (0.4, True), (-0.5, True), (0.6, False), (-1, False)])
def test_what_is_no_8_bit_image_is_refused_or_rounded_if_it_lies_in_the_range(off, rounds):
    look = tiny.PREPROCESSING
    edge = 255 if off > 0 else 0
    drawn = look.normalize(np.full((1, 3, 8, 8), (edge + off) / 255, np.float32))
    with pytest.raises(BundleError, match="nothing was sent"):
        to_pixels(drawn, look, "exact")
    if rounds:
        assert (to_pixels(drawn, look, "rounded") == edge).all()
    else:
        with pytest.raises(BundleError, match="leaves"):
            to_pixels(drawn, look, "rounded")


def test_an_8_bit_obfuscator_gives_its_image(tmp_path):
    bundle, _ = tiny.save_bundles(tmp_path, "8-bit")
    image = tiny.image(3)
    hidden = Obfuscator(bundle, eight_bit="exact").obfuscate(image)
    assert hidden.tensor.dtype == np.uint8 and not hidden.tensor.flags.writeable
    np.testing.assert_array_equal(hidden.tensor, tiny.negative(image))
    np.testing.assert_array_equal(np.asarray(hidden.preview()), tiny.negative(image))
    np.testing.assert_array_equal(np.asarray(Obfuscator(bundle).obfuscate(image).preview()), tiny.negative(image))


def test_floats_are_rounded_only_if_asked(tmp_path):
    bundle, _ = tiny.save_bundles(tmp_path, "unit")
    image = tiny.image(3)
    with pytest.raises(BundleError, match="--round"):
        Obfuscator(bundle, eight_bit="exact").obfuscate(image)
    rounded = Obfuscator(bundle, eight_bit="rounded").obfuscate(image).tensor
    np.testing.assert_array_equal(rounded, (tiny.negative(image).astype(int) * 2 + 2) // 5)  # 0.4 times as much


def test_rounding_does_not_bring_the_image_back(tmp_path):
    bundle, _ = tiny.save_bundles(tmp_path, "almost", recipe_kind="baseline")
    Obfuscator(bundle, allow_recognisable=True).obfuscate(tiny.image(3))  # it is far enough from the image
    with pytest.raises(BundleError, match="the image itself; nothing was sent"):
        Obfuscator(bundle, eight_bit="rounded", allow_recognisable=True).obfuscate(tiny.image(3))


def test_a_code_is_no_image(tmp_path):
    bundle, _ = tiny.save_split_bundles(tmp_path)
    with pytest.raises(ValueError, match="not for both"):
        Obfuscator(bundle, split=True, eight_bit="rounded")
    with pytest.raises(ImageError):
        Obfuscator(bundle, split=True).obfuscate(tiny.image()).preview()
