"""Files and the requests that carry them, read back with other means."""

from __future__ import annotations

import base64
import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from sfumato.device import image_files
from sfumato.device.image_files import ImageFile, Request, encode_image
from sfumato.errors import EndpointError
from tiny import image

NOISE = image(0, 24, 17)
FLAT = np.full((40, 40, 3), (200, 10, 30), np.uint8)
FILE = ImageFile(b"\x89PNG\r\n--not really an image--\0", "png")


def png_chunks(data: bytes) -> list[bytes]:
    found, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        found.append(data[place + 4 : place + 8])
        place += 12 + length
    return found


@pytest.mark.parametrize("kind", ["png", "webp", "smallest"])
@pytest.mark.parametrize("pixels", [NOISE, FLAT, FLAT[:1, :1]], ids=["noise", "flat", "one pixel"])
def test_a_file_holds_the_pixels_exactly_and_nothing_else(kind, pixels):
    file = encode_image(pixels, kind)
    with Image.open(io.BytesIO(file.data)) as image:
        assert image.get_format_mimetype() == file.media_type
        assert not image.getexif() and not {"exif", "icc_profile", "xmp", "comment"} & image.info.keys()
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels)
    if file.kind == "png":
        assert set(png_chunks(file.data)) == {b"IHDR", b"IDAT", b"IEND"}
    else:
        assert file.data[12:16] == b"VP8L", "a simple lossless file, which has no place for metadata"


@pytest.mark.parametrize("pixels", [NOISE, FLAT], ids=["noise", "flat"])
def test_the_smallest_is_the_smallest(pixels):
    sizes = [len(encode_image(pixels, kind).data) for kind in ("png", "webp")]
    assert len(encode_image(pixels, "smallest").data) == min(sizes)


def test_without_webp_it_is_png(monkeypatch):
    monkeypatch.setattr(image_files.features, "check", lambda name: False)
    assert encode_image(FLAT, "smallest").kind == "png"
    with pytest.raises(EndpointError, match="without WebP"):
        encode_image(FLAT, "webp")


def test_json_bodies():
    text = base64.b64encode(FILE.data).decode()
    body, headers = Request("json", "image").body(FILE)
    assert (json.loads(body), headers) == ({"image": text}, {"Content-Type": "application/json"})
    template = {"requests": [{"image": "data:{type};base64,{base64}", "most": 3, "{base64}": None}]}
    body, _ = Request("json", template=template).body(FILE)
    wanted = {"requests": [{"image": f"data:image/png;base64,{text}", "most": 3, "{base64}": None}]}
    assert json.loads(body) == wanted


def test_the_body_is_the_file():
    assert Request("body").body(FILE) == (FILE.data, {"Content-Type": "image/png"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"style": "ftp"}, "ftp"),
        ({"field": ""}, "field"),
        ({"field": "a\r\nb"}, "field"),
        ({"style": "form", "template": {"a": "{base64}"}}, '"json"'),
        ({"style": "json", "template": {"a": "base64"}}, "{base64}"),
        ({"style": "json", "template": {"a": ["{base64}", object()]}}, "cannot be written"),
    ],
)
def test_a_request_that_cannot_be_made_is_refused(options, said):
    with pytest.raises(EndpointError, match=said):
        Request(**options)
