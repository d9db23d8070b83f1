"""Whether a payload shows its image: the least that an obfuscator must not do.

It sees a copy of the image in any channel of the payload: scaled, shifted in brightness, negated, in grey or in mixed
or exchanged colours; on the probes mirrored, turned or moved by a few pixels, too. It does not see what a trained
attacker finds, nor noise over the image, pixels or blocks in another order, or a copy behind any other function. An
audit (`sfumato audit`) measures what a payload gives away.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGE_EXPLAINS = 0.98
"""The share of a channel's variance, in one image, that makes it a copy; obfuscators reach 0.8 on some images."""
PROBES_EXPLAIN = 0.9
"""The same on average over the probes of one kind; obfuscators stay below 0.3."""
_FLAT_VARIANCE = 1e-4  # below this, an image in [0, 1] has too little in it to be found
_GRID = 16
_PROBE_GRID = 32
_MOVED_PIXELS = 2
_FEWEST_PIXELS = 8  # on a side: four numbers explain the values of a few pixels, whatever they are
_PER_KIND = 3
_COARSE = 4
_RECTANGLES = 40


def explained(images: NDArray[np.float32], payload: NDArray[np.float32], *, grid: int = _GRID) -> NDArray[np.float64]:
    """Return how well the image's three colours explain each channel of the payload, pixel by pixel.

    Args:
        images: (N, 3, H, W).
        payload: of the same shape; finite.
        grid: rows and columns of pixels that are looked at, about.

    Returns:
        (N, 3): R^2 in [0, 1] of the linear regression of each payload channel on the image's channels and a constant;
        0 for a channel without variance, NaN for an image with next to none.
    """
    rows, columns = max(1, images.shape[2] // grid), max(1, images.shape[3] // grid)
    colours, channels = images[:, :, ::rows, ::columns], payload[:, :, ::rows, ::columns]
    both = np.empty((len(images), 6, *colours.shape[2:]))
    both[:, :3], both[:, 3:] = colours, channels
    both = both.reshape(len(images), 6, -1)
    both -= np.add.reduce(both, axis=2, keepdims=True) / both.shape[2]
    products = both @ both.transpose(0, 2, 1) + _RIDGE
    shared = products[:, :3, 3:]
    share: NDArray[np.float64] = (shared * np.linalg.solve(products[:, :3, :3], shared)).sum(axis=1)
    share /= products[:, _CHANNELS, _CHANNELS]
    variance = products[:, 0, 0] + products[:, 1, 1] + products[:, 2, 2]
    share[variance < 3 * both.shape[2] * _FLAT_VARIANCE] = np.nan
    return share


_CHANNELS = np.arange(3, 6)
_RIDGE = np.diag([1e-6] * 3 + [1e-30] * 3)
"""A grey image has one colour, and a flat one none: with a little on the diagonal the regression exists."""


def shows_probes(probes: NDArray[np.float32], payload: NDArray[np.float32]) -> bool:
    """Return whether the payload of the `probe_images` shows them, as they are, mirrored, turned, or moved.

    Args:
        probes: (N, 3, H, W) float32 in [0, 1], from `probe_images`.
        payload: of the same shape; finite.
    """
    height, width = probes.shape[2:]
    turned = [probes, *(np.flip(probes, axes) for axes in (2, 3, (2, 3)))]
    if height == width:
        turned += [copy.transpose(0, 1, 3, 2) for copy in turned]
    if any(_shows(copy, payload) for copy in turned):
        return True
    edge = max(0, min(_MOVED_PIXELS, (min(height, width) - _FEWEST_PIXELS) // 2))
    inner = payload[:, :, edge : height - edge, edge : width - edge]
    return any(
        _shows(probes[:, :, down : down + inner.shape[2], right : right + inner.shape[3]], inner)
        for down, right in product(range(2 * edge + 1), repeat=2)
    )


def _shows(probes: NDArray[np.float32], payload: NDArray[np.float32]) -> bool:
    of_each_kind = explained(probes, payload, grid=_PROBE_GRID).reshape(-1, _PER_KIND, 3).mean(axis=1)
    return bool((of_each_kind >= PROBES_EXPLAIN).any())


def probe_images(height: int, width: int) -> NDArray[np.float32]:
    """Synthesise images of several kinds, always the same ones: smooth colours, noise, and rectangles.

    Returns:
        (N, 3, H, W) float32 in [0, 1].
    """
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(_PER_KIND)]
    shapes = []
    for _ in range(_PER_KIND):
        image = np.zeros((height, width, 3), np.uint8)
        for _ in range(_RECTANGLES):
            top, left = random.integers(0, height), random.integers(0, width)
            bottom, right = top + 1 + random.integers(0, height), left + 1 + random.integers(0, width)
            image[top:bottom, left:right] = random.integers(0, 256, 3)
        shapes.append(image)
    images = np.stack([*synthetic_images(_PER_KIND, height, width), *noise, *shapes])
    return images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def synthetic_images(count: int, height: int, width: int) -> list[NDArray[np.uint8]]:
    """Synthesise images: smooth random colours with some grain, always the same ones, (H, W, 3) uint8 each."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (_COARSE, _COARSE, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        images.append((smooth + random.integers(-16, 17, smooth.shape)).clip(0, 255).astype(np.uint8))
    return images
