"""Every kind of image that people have, and every kind of file that is none."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.device import load_image, prepare
from sfumato.errors import ImageError
from tiny import PREPROCESSING, image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that only claims its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


RGB = image(1, 5, 7)


def test_the_same_image_from_every_source(tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    file = tmp_path / "p.png"
    image.save(file)
    for source in (file, str(file), file.read_bytes(), bytearray(file.read_bytes()), image, RGB):
        got = load_image(source)
        assert (got.dtype, got.shape) == (np.uint8, (5, 7, 3))
        np.testing.assert_array_equal(got, RGB)


def test_grey_becomes_three_equal_channels() -> None:
    grey = RGB[..., 0]
    for source in (grey, encoded(Image.fromarray(grey))):
        np.testing.assert_array_equal(load_image(source), np.repeat(grey[..., None], 3, axis=2))


def test_palette() -> None:
    image = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(load_image(encoded(image)), np.asarray(image.convert("RGB")))


def test_one_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert load_image(encoded(image)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("as_file", [False, True])
def test_transparency_is_laid_on_white(as_file: bool) -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 255, 128
    source = encoded(Image.fromarray(pixels)) if as_file else pixels
    assert load_image(source)[0, :, 0].tolist() == [255, 0, 127]


def test_transparent_palette_is_laid_on_white() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([0, 0, 0])
    assert load_image(encoded(image, transparency=0)).tolist() == [[[255, 255, 255]]]


def test_cmyk() -> None:
    white = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert load_image(encoded(white, "JPEG")).min() > 250


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    got = load_image(encoded(Image.fromarray(values), kind))
    assert got[0, :, 0].tolist() == [0, 1, 128, 255]


def test_32_bit_and_float_images_are_refused() -> None:
    for values in (np.full((2, 2), 70_000, np.int32), np.ones((2, 2), np.float32)):
        with pytest.raises(ImageError, match="white is unknown"):
            load_image(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("#ff0000", "#0000ff")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(data)[0, 0].tolist() == [255, 0, 0]


def test_one_pixel() -> None:
    got = load_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3))))
    assert got.tolist() == [[[1, 2, 3]]]
    assert prepare(got, PREPROCESSING).shape == (3, 8, 8)


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    got = load_image(encoded(Image.fromarray(RGB), exif=exif))
    np.testing.assert_array_equal(got, np.rot90(RGB, -1))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_not_matter() -> None:
    np.testing.assert_array_equal(load_image(encoded(Image.fromarray(RGB), exif=b"Exif\0\0MM\0*junk")), RGB)


def test_a_given_image_is_left_alone() -> None:
    image = Image.fromarray(RGB)
    image.info["comment"] = "mine"
    load_image(image)
    assert image.info == {"comment": "mine"}


BAD_FILES = {
    "text": b"this is no image at all",
    "empty": b"",
    "truncated.png": encoded(Image.fromarray(image(2, 64, 64)))[:-4000],
    "truncated.jpg": encoded(Image.fromarray(image(2, 64, 64)), "JPEG")[:-500],
    "header-only.png": encoded(Image.fromarray(RGB))[:20],
    "bomb.png": png_header(20_000, 20_000),
    "wide-bomb.png": png_header(20_000, 5_000),
    "zero.png": png_header(0, 5),
    "eps.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(BAD_FILES[name])
    with pytest.raises(ImageError) as caught:
        load_image(file)
    assert str(file) in str(caught.value)
    with pytest.raises(ImageError):
        load_image(BAD_FILES[name])


def test_an_image_20000_pixels_wide_is_fine_if_it_is_flat() -> None:
    got = load_image(encoded(Image.new("L", (20_000, 3), 9)))
    assert got.shape == (3, 20_000, 3)
    assert prepare(got, Preprocessing(224, 224)).shape == (3, 224, 224)


def test_the_limit_of_others_is_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError):
        load_image(png_header(20_000, 20_000))
    assert before == Image.MAX_IMAGE_PIXELS


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing.png", tmp_path, tmp_path / "pipe", tmp_path / ("x" * 300), "a\0b", "/dev/zero"):
        with pytest.raises(ImageError):
            load_image(path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(3, np.uint8),
        np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_bad_arrays_are_refused(array: Any) -> None:
    with pytest.raises(ImageError):
        load_image(array)


def test_other_things_are_refused() -> None:
    for thing in (None, 3, [[1]]):
        with pytest.raises(ImageError):
            load_image(thing)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@given(st.binary(max_size=300), st.sampled_from([b"", *(data[:60] for data in BAD_FILES.values())]))
def test_any_bytes_are_an_image_or_an_image_error(tail: bytes, head: bytes) -> None:
    try:
        got = load_image(head + tail)
    except ImageError:
        return
    assert got.dtype == np.uint8
    assert got.shape[2] == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.data())
def test_a_damaged_image_is_an_image_or_an_image_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    body = bytearray(encoded(Image.fromarray(RGB), kind))
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert load_image(bytes(body)).shape[2] == 3


def test_an_image_of_the_right_size_is_untouched() -> None:
    source = image(3)
    expected = source.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    got = prepare(source, PREPROCESSING)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (24, 16), (5, 9), (8, 9), (1, 500), (13, 13)])
def test_resizing_keeps_the_centre_and_the_range(height: int, width: int) -> None:
    got = prepare(image(4, height, width), PREPROCESSING)
    assert got.shape == (3, 8, 8)
    assert got.flags.c_contiguous
    assert 0 <= got.min() <= got.max() <= 1
    flat = prepare(np.full((height, width, 3), 51, np.uint8), PREPROCESSING)
    np.testing.assert_allclose(flat, 0.2, atol=1e-6)


def test_resizing_agrees_with_resize_then_crop() -> None:
    source = image(5, 32, 64)
    whole = Image.fromarray(source).resize((16, 8), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((4, 0, 12, 8))).astype(int)
    got = np.round(prepare(source, PREPROCESSING) * 255).astype(int).transpose(1, 2, 0)
    # At the two cut edges the filter no longer sees what was cut away.
    np.testing.assert_allclose(got[:, 1:-1], expected[:, 1:-1], atol=1)
