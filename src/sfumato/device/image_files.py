"""Obfuscated images as files, and the requests that endpoints take them in.

A file is made from the pixels alone: the name and metadata of the image's own file are not available here.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features
from urllib3 import encode_multipart_formdata
from urllib3.fields import RequestField

from sfumato.errors import EndpointError

FileFormat = Literal["smallest", "png", "webp"]
Style = Literal["form", "body", "json"]
BASE64, TYPE = "{base64}", "{type}"
"""Placeholders in a template's strings: the file in base64, and its media type."""


@dataclass(frozen=True)
class ImageFile:
    """An image file, losslessly encoded."""

    data: bytes
    kind: Literal["png", "webp"]

    @property
    def media_type(self) -> str:
        """Such as "image/png"."""
        return f"image/{self.kind}"


def encode_image(pixels: NDArray[np.uint8], file_format: FileFormat) -> ImageFile:
    """Encode pixels, and nothing else, without loss.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        file_format: "smallest" takes what is smaller for this image: PNG, or lossless WebP where Pillow has it.

    Raises:
        EndpointError: WebP is asked for, and Pillow lacks it.
    """
    image, found, has_webp = Image.fromarray(pixels), [], features.check("webp")
    if file_format == "webp" and not has_webp:
        raise EndpointError('Pillow was built without WebP here; use the file format "png"')
    if file_format != "webp":
        found.append(ImageFile(_saved(image, "PNG", optimize=True), "png"))
    if file_format != "png" and has_webp:
        found.append(ImageFile(_saved(image, "WEBP", lossless=True), "webp"))
    return min(found, key=lambda file: len(file.data))


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@dataclass(frozen=True)
class Request:
    """The format in which an endpoint takes a file; see `FileClient`. An `EndpointError` if it makes no sense."""

    style: Style = "form"
    field: str = "file"
    template: Any = None

    def __post_init__(self) -> None:
        if self.style not in ("form", "body", "json"):
            raise EndpointError(f'files are sent as "form", "body" or "json"; got {self.style!r}')
        if not self.field or not self.field.isprintable():
            raise EndpointError("the field's name must be printable and not empty")
        if self.template is None:
            return
        if self.style != "json":
            raise EndpointError(f'a template is for the style "json"; files are sent as {self.style!r}')
        try:
            json.dumps(self.template, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise EndpointError(f"the template cannot be written as JSON ({type(error).__name__})") from None
        if _filled(self.template, {BASE64: ""}) == self.template:
            raise EndpointError(f"the template has no string with {BASE64} in it, which the file would replace")

    def body(self, file: ImageFile) -> tuple[bytes, dict[str, str]]:
        """Return the request's body with a file in it, and the headers that describe it."""
        if self.style == "body":
            return file.data, {"Content-Type": file.media_type}
        if self.style == "json":
            text = base64.b64encode(file.data).decode("ascii")
            template = {self.field: BASE64} if self.template is None else self.template
            filled = _filled(template, {TYPE: file.media_type, BASE64: text})
            return json.dumps(filled).encode(), {"Content-Type": "application/json"}
        # Servers take a part for a file only if it has a name; every file has the same.
        part = RequestField(self.field, file.data, filename=f"image.{file.kind}")
        part.make_multipart(content_type=file.media_type)
        body, content_type = encode_multipart_formdata([part])
        return body, {"Content-Type": content_type}


def _filled(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, str):
        for place, text in places.items():
            value = value.replace(place, text)
        return value
    if isinstance(value, dict):
        return {key: _filled(inner, places) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(inner, places) for inner in value]
    return value
