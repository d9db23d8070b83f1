"""Measure ways to have an image classified: accuracy, bytes, milliseconds, and what the size of a payload tells."""

from __future__ import annotations

import io
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sfumato.artifacts.bundle import CLASSIFIER_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.device.predictions import softmax
from sfumato.lab.advice.schema import Kind, Way
from sfumato.lab.audit.selective import RATES
from sfumato.lab.baselines.simple import Blur, Pixelate
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import classify, evaluate_obfuscator
from sfumato.progress import Progress, silent, tracked

Pixels = npt.NDArray[np.uint8]

PLAIN = "plain image"
THUMBNAIL_BYTES = (100, 200, 400, 700, 1000)
_HEADER_BYTES = 20
"""Of a WebP file: the same for all but for two lengths, so that it need not be sent."""
_SCALES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)
_SCALED_ON = 8
"""Images that the scale of a thumbnail is chosen on."""
_BLURS = (1.0, 2.0, 4.0)
"""In pixels of an image of 32 pixels."""
_TILES, _FEWEST_TILES = (2, 4, 8, 16, 32, 64), 4
_BINS, _IN_A_BIN = 64, 20
_TIMED = 20


class Payload(NamedTuple):
    """A payload's bytes, and what the classifier sees of it, (H, W, 3)."""

    size: int
    seen: Pixels


@dataclass(frozen=True)
class ImageWay:
    """A way that sends every image, changed or not.

    Attributes:
        make: an image (H, W, 3) -> its payload; None if it does not fit.
    """

    name: str
    kind: Kind
    make: Callable[[Pixels], Payload | None]


def image_ways(test: ImageSet) -> list[ImageWay]:
    """Return the ways to measure on such images: plain, thumbnails, blurred and pixelated."""
    height, width = test.images.shape[2:]
    found = [ImageWay(PLAIN, "plain", lambda image: Payload(len(_webp(image, lossless=True)), image))]
    for limit in THUMBNAIL_BYTES:
        made = partial(thumbnail, limit=limit, scale=_best_scale(test, limit))
        found.append(ImageWay(f"thumbnail of {limit:,} bytes", "thumbnail", made))
    for strength in _BLURS:
        sigma = strength * min(height, width) / 32
        blur = Blur(height, width, strength=sigma)
        found.append(ImageWay(f"blurred, {sigma:g} pixels", "blur", partial(_changed, blur, tile=1)))
    for tile in _TILES:
        if not height % tile and not width % tile and min(height, width) >= _FEWEST_TILES * tile:
            pixelate = Pixelate(height, width, strength=tile)
            found.append(ImageWay(f"pixelated, {tile} pixels", "pixelate", partial(_changed, pixelate, tile=tile)))
    return found


def thumbnail(image: Pixels, *, limit: int, scale: float = 1.0) -> Payload | None:
    """Return the WebP thumbnail of an image in at most so many bytes, or None if there is none.

    Args:
        image: (H, W, 3).
        limit: bytes, without the header.
        scale: of the sides; a smaller one is taken for an image that does not fit.
    """
    size = image.shape[1], image.shape[0]
    for smaller in (one for one in _SCALES if one <= scale):
        small = Image.fromarray(image).resize([max(1, round(side * smaller)) for side in size], Image.Resampling.BOX)
        low, high, best = 0, 100, b""
        while low <= high:
            quality = (low + high) // 2
            coded = _webp(np.asarray(small), quality=quality)
            low, high, best = (quality + 1, high, coded) if len(coded) <= limit else (low, quality - 1, best)
        if best:
            return Payload(len(best), np.asarray(_opened(best).resize(size, Image.Resampling.BICUBIC)))
    return None


def measure_image_way(
    way: ImageWay, classifier: Bundle, test: ImageSet, cloud_ms: float, progress: Progress = silent
) -> Way | None:
    """Measure a way on test images; return None if an image does not fit into its bytes."""
    sizes, seen, started = [], [], time.perf_counter()
    for image in tracked(test.images.permute(0, 2, 3, 1).numpy(), way.name, progress):
        made = way.make(np.ascontiguousarray(image))
        if made is None:
            return None
        sizes.append(made.size)
        seen.append(made.seen)
    device_ms = (time.perf_counter() - started) * 1000 / len(test)
    received = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).contiguous()
    predicted = classify(classifier, replace(test, images=received), progress=progress).argmax(dim=1)
    return Way(
        name=way.name,
        kind=way.kind,
        accuracy=_share(predicted == test.labels),
        test_images=len(test),
        offload_rate=1.0,
        payload_bytes=statistics.fmean(sizes),
        bits=8.0 * max(sizes),
        padded_bytes=float(max(sizes)),
        accuracy_from_size=accuracy_from_size(np.array(sizes), test.labels.numpy()),
        device_ms=device_ms,
        cloud_ms=cloud_ms,
    )


def net_ways(bundle: Bundle, name: str, test: ImageSet, plain: Way, cloud: Tensor, *, at_least: bool) -> Iterator[Way]:
    """Yield a local net, and its gates, each of which sends the images in the clear that the net is unsure of.

    Args:
        bundle: of the net.
        name: of the net.
        test: images with labels.
        plain: the measurements of plain images.
        cloud: the classifier's predictions on the plain images, (N,) int64.
        at_least: see `Way`.
    """
    probabilities = softmax(classify(bundle, test).numpy())
    correct, sure = torch.from_numpy(probabilities.argmax(axis=1)) == test.labels, probabilities.max(axis=1)
    local = Way(
        name=name,
        kind="local",
        accuracy=_share(correct),
        test_images=len(test),
        offload_rate=0.0,
        payload_bytes=0.0,
        bits=0.0,
        device_ms=milliseconds(bundle),
        at_least=at_least,
        bundle=str(bundle.path),
    )
    yield local
    for rate in RATES:
        threshold = float(np.sort(sure)[min(len(sure) - 1, round(rate * len(sure)))])
        sent = torch.from_numpy(sure < threshold)
        share = _share(sent)
        yield replace(
            local,
            name=f"{name}, {rate:.0%} sent in the clear",
            kind="gate",
            accuracy=_share(torch.where(sent, cloud == test.labels, correct)),
            offload_rate=share,
            payload_bytes=share * plain.payload_bytes,
            padded_bytes=None if plain.padded_bytes is None else share * plain.padded_bytes,
            accuracy_from_size=plain.accuracy_from_size,
            bits=plain.bits,
            cloud_ms=share * (plain.cloud_ms or 0),
            threshold=threshold,
        )


def sketch_ways(
    bundle: Bundle, classifier: Bundle, test: ImageSet, cloud_ms: float, *, at_least: bool, progress: Progress = silent
) -> Iterator[Way]:
    """Yield a sketch that sends a code of every image, and the same with its gate."""
    found = evaluate_obfuscator(bundle, classifier, test, progress=progress)
    bits = float(bundle.recipe.code_bits or 0)
    sketch = Way(
        name="sketch",
        kind="sketch",
        accuracy=found.accuracy_obfuscated,
        test_images=len(test),
        offload_rate=1.0,
        payload_bytes=math.ceil(bits / 8),
        bits=bits,
        device_ms=milliseconds(bundle),
        cloud_ms=cloud_ms,
        at_least=at_least,
        bundle=str(bundle.path),
    )
    yield sketch
    if found.accuracy_gated is not None and found.offload_rate is not None:
        yield replace(
            sketch,
            name="sketch with its gate",
            accuracy=found.accuracy_gated,
            offload_rate=found.offload_rate,
            payload_bytes=found.offload_rate * sketch.payload_bytes,
            bits=math.log2(2**bits + 1),  # a code, or nothing
            cloud_ms=found.offload_rate * cloud_ms,
        )


def milliseconds(bundle: Bundle) -> float:
    """Return the median time of a bundle's network on one image and one thread, in milliseconds."""
    size = bundle.preprocessing
    function = OnnxFunction(bundle.file(CLASSIFIER_ONNX if bundle.kind == "classifier" else OBFUSCATOR_ONNX), threads=1)
    image = np.full((1, 3, size.height, size.width), 0.5, np.float32)
    times = []
    for _ in range(_TIMED):
        started = time.perf_counter()
        function.all(image)
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def accuracy_from_size(sizes: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float | None:
    """Return how often the class is that which most payloads of about this size have; None if all have one size.

    Every other image, (N,) in all, is learned from, and the rest is predicted.
    """
    if (sizes == sizes[0]).all() or len(sizes) < 2:
        return None
    bins = max(2, min(_BINS, len(sizes) // (2 * _IN_A_BIN)))
    edges = np.unique(np.quantile(sizes[::2], np.arange(1, bins) / bins))
    counts = np.zeros((len(edges) + 1, labels.max() + 1), np.int64)
    np.add.at(counts, (np.searchsorted(edges, sizes[::2]), labels[::2]), 1)
    guesses = np.where(counts.any(axis=1), counts.argmax(axis=1), counts.sum(axis=0).argmax())
    return float((guesses[np.searchsorted(edges, sizes[1::2])] == labels[1::2]).mean())


def _best_scale(test: ImageSet, limit: int) -> float:
    """Return the scale of the sides whose thumbnails are closest to some test images."""
    images = test.images[:_SCALED_ON].permute(0, 2, 3, 1).contiguous().numpy()

    def error(scale: float) -> float:
        made = [thumbnail(image, limit=limit, scale=scale) for image in images]
        return sum(
            math.inf if one is None else float(np.square(one.seen.astype(float) - image).mean())
            for one, image in zip(made, images, strict=True)
        )

    return min(_SCALES, key=error)


def _changed(method: Blur | Pixelate, image: Pixels, *, tile: int) -> Payload:
    with torch.no_grad():
        changed = method(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    seen = (changed[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Payload(len(_webp(np.ascontiguousarray(seen[::tile, ::tile]), lossless=True)), seen)


def _webp(image: Pixels, **how: object) -> bytes:
    """A WebP image without its header."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "WEBP", **how)
    return stream.getvalue()[_HEADER_BYTES:]


def _opened(coded: bytes) -> Image.Image:
    """A lossy WebP image whose header was left out."""
    length = len(coded).to_bytes(4, "little")
    return Image.open(io.BytesIO(b"RIFF" + (len(coded) + 12).to_bytes(4, "little") + b"WEBPVP8 " + length + coded))


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
