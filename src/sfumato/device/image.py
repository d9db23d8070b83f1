"""Preprocessing: decode an image and fit it to the obfuscator's input.

Only pixels come out: orientation is applied; EXIF, colour profiles, comments and thumbnails are dropped.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sfumato.artifacts.bundle import Preprocessing
from sfumato.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]

MAX_PIXELS = 50_000_000
# Decoders that only decode. Others that Pillow knows are left out on purpose: EPS starts Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")


def load_image(source: ImageSource) -> NDArray[np.uint8]:
    """Decode an image to RGB.

    Grey, palette, CMYK and 16-bit grey images are converted; transparent ones are composited on white; of an animation
    the first frame is taken. EXIF orientation is applied, and no metadata is kept.

    Args:
        source: a file's path, a file's bytes, a Pillow image, or a uint8 array of shape (H, W), (H, W, 3) or
            (H, W, 4), with alpha as the fourth channel.

    Returns:
        The pixels: (H, W, 3) uint8, RGB.

    Raises:
        ImageError: no such file, not an image, damaged, empty, of a kind whose range is unknown (floating point),
            or larger than `MAX_PIXELS`, which is checked before any pixel is decoded.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the image given")
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), "the bytes given")
    if isinstance(source, str | os.PathLike):
        return _from_file(Path(source))
    raise ImageError(f"an image must be a path, bytes, a Pillow image or a uint8 array; got {type(source).__name__}")


def prepare(image: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Fit an image to the obfuscator's size and scale it to [0, 1].

    The shorter side is fitted with antialiased bilinear resampling, then the centre is cropped. An image that has
    the size already is not resampled: its values are exactly `pixel / 255`.

    Args:
        image: (H, W, 3) uint8, RGB.
        preprocessing: the size wanted; its mean and deviation are not applied, the obfuscator's graph holds them.

    Returns:
        (3, height, width) float32 in [0, 1].
    """
    image = fit(image, preprocessing.height, preprocessing.width)
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def fit(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Fit the shorter side with antialiased bilinear resampling and crop the centre.

    The lab prepares its training images with this function too, so that both see the same.

    Args:
        image: (H, W, 3) uint8.
        height: rows wanted.
        width: columns wanted.

    Returns:
        (height, width, 3) uint8; the image itself if it has that size already.
    """
    if image.shape[:2] == (height, width):
        return image
    # Cropping the source first gives the same pixels as cropping the result, but an image of 20,000 x 1
    # would become gigabytes in between otherwise.
    rows, columns = image.shape[:2]
    scale = min(rows / height, columns / width)
    top, left = (rows - height * scale) / 2, (columns - width * scale) / 2
    box = (max(0.0, left), max(0.0, top), min(columns, left + width * scale), min(rows, top + height * scale))
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise ImageError(
            f"an array of {array.dtype} was given; images are uint8 in 0 to 255 "
            "(for floats in [0, 1]: `(array * 255).round().astype('uint8')`)"
        )
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(f"an array of shape {array.shape} was given; expected (H, W), (H, W, 3) or (H, W, 4)")
    _check_size(array.shape[1], array.shape[0], "the array given")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), "the array given")


def _from_file(path: Path) -> NDArray[np.uint8]:
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder; an image file is expected")
        if path.exists() and not path.is_file():
            raise ImageError(f"{path} is not a regular file; an image file is expected")
        with path.open("rb") as stream:
            return _decode(stream, str(path))
    except FileNotFoundError:
        raise ImageError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise ImageError(f"cannot read {path}: {getattr(error, 'strerror', None) or type(error).__name__}") from None


def _decode(stream: Any, name: str) -> NDArray[np.uint8]:
    if not stream.read(1):
        raise ImageError(f"{name}: is empty")
    try:
        image = Image.open(stream, formats=_known_formats())
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a known format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name}: has more than {MAX_PIXELS} pixels; make it smaller first") from None
    except Exception as error:  # decoders fail in every way on hostile headers
        raise ImageError(f"{name}: cannot be opened as an image ({type(error).__name__})") from None
    with image:
        return _to_rgb(image, name)


def _known_formats() -> list[str]:
    Image.init()  # registers the decoders; does nothing the second time
    return [name for name in FORMATS if name in Image.OPEN]


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name}: has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} is more than {MAX_PIXELS} pixels; make it smaller first")


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    _check_size(image.width, image.height, name)
    try:
        image.load()
        pixels = np.asarray(_flatten(_upright(image), name))
    except ImageError:
        raise
    except Exception as error:  # decoders fail in every way on damaged data
        raise ImageError(f"{name}: truncated or damaged ({type(error).__name__})") from None
    return pixels


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # an image with damaged EXIF data is still an image
        return image


def _flatten(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode to RGB."""
    if image.mode == "F":
        raise ImageError(f"{name}: holds floating-point values, whose white is unknown; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bit(image, name).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    # Pillow would clip at 255. It also reads 16-bit PGM files as mode "I", which could hold 32 bits.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name}: holds 32-bit values, whose white is unknown; save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
