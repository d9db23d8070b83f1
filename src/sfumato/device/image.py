"""Preprocessing: decode an image and fit it to the obfuscator's input; and the 8-bit image in its output.

Only pixels come out: orientation is applied; EXIF, colour profiles, comments and thumbnails are dropped.
"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.errors import BundleError, ImageError

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]

EightBit = Literal["exact", "rounded"]
"""Whether the obfuscator's output has to be an 8-bit image, or is rounded to one."""

MAX_PIXELS = 50_000_000
_OFF_LEVELS = 0.01
_HALF_A_LEVEL = 0.5
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

    The lab prepares its training images with this function too, so that both see the same. (H, W, 3) uint8 ->
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


def to_pixels(outputs: NDArray[np.float32], preprocessing: Preprocessing, how: EightBit) -> NDArray[np.uint8]:
    """Return the 8-bit images that an obfuscator's graph, which ends with the normalisation, has normalised.

    Rounding gives back exactly these images, because float32 is off by some ten-thousandths of a level. What the bundle
    states of its output is not trusted: the values show whether they are those of an 8-bit image.

    Args:
        outputs: the classifier's input: (N, 3, H, W) float32, finite, normalised.
        preprocessing: with the normalisation.
        how: "exact" refuses outputs that are not 8-bit images already; "rounded" rounds those in [0, 1] to the
            nearest one.

    Returns:
        (N, H, W, 3) uint8, RGB.

    Raises:
        BundleError: the outputs are no 8-bit images, or leave [0, 1].
    """
    levels = preprocessing.denormalize(outputs.astype(np.float64)) * 255
    nearest = np.rint(levels).clip(0, 255)
    off = float(np.abs(levels - nearest).max(initial=0.0))
    if off > _OFF_LEVELS + _HALF_A_LEVEL:
        raise BundleError(
            "the obfuscator's output leaves [0, 1], which no image file can hold, so nothing was sent; use an "
            'obfuscator that was trained with output.format = "8-bit", or a sketch'
        )
    if off > _OFF_LEVELS and how == "exact":
        raise BundleError(
            "the obfuscator's output is no 8-bit image, so nothing was sent; round it (--round, or rounding=True; "
            "`sfumato evaluate --round` says what that costs), or use an obfuscator that was trained with "
            'output.format = "8-bit"'
        )
    return nearest.astype(np.uint8).transpose(0, 2, 3, 1)


def from_pixels(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Normalise 8-bit images of the classifier's size: (N, H, W, 3) uint8 -> (N, 3, H, W) float32."""
    return preprocessing.normalize(pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))


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
    Image.init()  # registers the decoders; does nothing the second time
    try:
        image = Image.open(stream, formats=[known for known in FORMATS if known in Image.OPEN])
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a known format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name}: has more than {MAX_PIXELS} pixels; make it smaller first") from None
    except Exception as error:  # decoders fail in every way on hostile headers
        raise ImageError(f"{name}: cannot be opened as an image ({type(error).__name__})") from None
    with image:
        return _to_rgb(image, name)


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name}: has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} is more than {MAX_PIXELS} pixels; make it smaller first")


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    _check_size(image.width, image.height, name)
    try:
        image.load()
        with suppress(Exception):  # an image with damaged EXIF data is still an image
            image = ImageOps.exif_transpose(image)
        return np.asarray(_flatten(image, name))
    except ImageError:
        raise
    except Exception as error:  # decoders fail in every way on damaged data
        raise ImageError(f"{name}: truncated or damaged ({type(error).__name__})") from None


def _flatten(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode to RGB."""
    if image.mode == "F":
        raise ImageError(f"{name}: holds floating-point values, whose white is unknown; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # Pillow would clip at 255. It also reads 16-bit PGM files as mode "I", which could hold 32 bits.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name}: holds 32-bit values, whose white is unknown; save it with 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
