"""Load any data set: every image is decoded once, exactly as on the device, and kept memory-mapped in a cache."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfumato.device.image import fit, load_image
from sfumato.errors import DataError, ImageError
from sfumato.lab.data import cache, cifar10, faces
from sfumato.lab.data.image_set import SHOWN, ImageSet, content_sha256
from sfumato.lab.data.tables import (
    SPLIT_NAMES,
    find_columns,
    located,
    read_label_columns,
    read_labels,
    read_rows,
    undecoded,
)
from sfumato.progress import Progress, silent, tracked

MAX_UNREADABLE = 0.2
"""The share of a split's images that may be broken; with more, the data itself is at fault."""
_VERSION = "2"  # changes when the same source and split come to mean other images


def load_images(
    source: str,
    split: str,
    *,
    size: tuple[int, int] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_columns: tuple[str, ...] | None = None,
    unlabelled: bool = False,
    allow_outside: bool = False,
    progress: Progress = silent,
) -> ImageSet:
    """Load one split of a data set, decoded; from the cache where it was decoded before.

    Args:
        source: `cifar10`, `faces` (see `sfumato.lab.data.faces`), a local folder (parquet files, IDX files, or one
            folder per class), a CSV file of paths and classes, or a hub id, as `owner/name:configuration` where the
            data set has several configurations.
        split: "train" or "test". A data set without test images uses its "validation" split as "test", or, if it has
            none either, every fifth training image, which then is no training image.
        size: (height, width) in pixels that every image is fitted to as on the device; None if all have one already.
        image_column: the column with the images; found by its type if None.
        label_column: the column with the classes; found by its type or name if None.
        label_columns: the columns of multi-label data instead, one for each class: 0 or 1; see `read_label_columns`.
        unlabelled: accept images without classes; see `ImageSet`.
        allow_outside: read images outside a CSV file's folder, which anything could be that this user may read.
        progress: see `Progress`.

    Raises:
        DataError: the source cannot be found or read, a column is missing, or more than `MAX_UNREADABLE` of the
            images are broken.
    """
    if split not in SPLIT_NAMES:
        raise DataError(f"split {split!r} is unknown; expected one of {', '.join(SPLIT_NAMES)}")
    if label_columns and (source == "cifar10" or source in faces.SOURCES):
        raise DataError(f"{source} has one class per image; multi-label data come from a .csv file or parquet files")
    if source == "cifar10":
        if image_column or label_column:
            raise DataError("cifar10 has one column of images and one of classes: name neither")
        whole = cifar10.load(split, partial(load_images, progress=progress), progress)
        return whole if size is None or size == (32, 32) else _fitted(whole, size)
    if source in faces.SOURCES:
        if image_column not in (None, "image"):
            raise DataError(f"{source} has no column {image_column!r} of images; it is called 'image'")
        return faces.load(source, split, size, label_column, progress)
    label_key = label_column or ("label, if there is one" if unlabelled else None)
    outside = (allow_outside,) if source.endswith(".csv") else ()  # what one call may read is not cached for others
    several = () if label_columns is None else (label_columns,)
    key = _identity(source, split, size, image_column, label_key, *outside, *several)
    found = cache.find(key)
    if found is not None:
        return found
    rows = read_rows(source, split, image_column, allow_outside=allow_outside)
    by_columns = label_columns is not None
    image_column, label_column = find_columns(
        rows, source, image_column, label_column, unlabelled=unlabelled or by_columns
    )
    if label_columns is not None:
        names, labels = label_columns, read_label_columns(rows, label_columns, source)
    else:
        names, labels = read_labels(rows, label_column, source, unlabelled=unlabelled)
    pixels, decoded, broken = _decode(undecoded(rows, source, image_column), image_column, size, source, progress)
    images, kept = torch.from_numpy(pixels), torch.from_numpy(labels[decoded])
    entry = ImageSet(images, kept, names, source, content_sha256(images, kept), len(broken), tuple(broken[:SHOWN]))
    return cache.store(key, entry)


def _fitted(images: ImageSet, size: tuple[int, int]) -> ImageSet:
    fitted = np.stack([fit(image.transpose(1, 2, 0), *size) for image in images.images.numpy()])
    return replace(images, images=torch.from_numpy(np.ascontiguousarray(fitted.transpose(0, 3, 1, 2))))


def load_train_test(
    source: str,
    *,
    size: tuple[int, int] | None = None,
    label_column: str | None = None,
    label_columns: tuple[str, ...] | None = None,
    attributes: tuple[str, ...] = (),
    allow_outside: bool = False,
    progress: Progress = silent,
) -> tuple[ImageSet, ImageSet, dict[str, tuple[Tensor, Tensor]]]:
    """Load both splits, with classes or without, so that the first images of each are a fair sample.

    A split that comes sorted by class, as a folder with one folder per class does, is shuffled, the same each time.

    The attributes are further label columns; the other arguments are those of `load_images`.

    Returns:
        Training images (N), test images (M), and attribute -> values of both, (N,) and (M,) int64.

    Raises:
        DataError: see `load_images`; or an attribute has other values in one split than in the other.
    """
    load = partial(
        load_images,
        source,
        size=size,
        label_columns=label_columns,
        allow_outside=allow_outside,
        progress=progress,
    )
    loaded = [load(split, label_column=label_column, unlabelled=True) for split in ("train", "test")]
    (train, order), (test, test_order) = (_mixed(images) for images in loaded)
    extra = {}
    for name in attributes:
        (names, known), (others, asked) = (
            _column(source, split, size, name, images.unreadable, allow_outside=allow_outside)
            for split, images in zip(("train", "test"), loaded, strict=True)
        )
        if names != others:
            raise DataError(f"{source}: column {name!r} has other values in the training images than in the test ones")
        extra[name] = known[order], asked[test_order]
    return train, test, extra


def _column(
    source: str, split: str, size: tuple[int, int] | None, name: str, unreadable: int, *, allow_outside: bool
) -> tuple[tuple[str, ...], Tensor]:
    """Return a label column's names and values, (N,) int64; images are loaded only where some were left out."""
    if unreadable or source in ("cifar10", *faces.SOURCES):
        images = load_images(source, split, size=size, label_column=name, allow_outside=allow_outside)
        return images.names, images.labels
    rows = read_rows(source, split, allow_outside=allow_outside)
    find_columns(rows, source, None, name)
    names, values = read_labels(rows, name, source, unlabelled=False)
    return names, torch.from_numpy(values)


def _mixed(images: ImageSet) -> tuple[ImageSet, Tensor]:
    """Return images shuffled if they are sorted by class, and the order that they have now."""
    labels = images.labels
    if images.multi_label or len(set(labels.tolist())) < 2 or bool((labels[1:] < labels[:-1]).any()):
        return images, torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels, labels = images.images[order], labels[order]
    return replace(images, images=pixels, labels=labels, sha256=content_sha256(pixels, labels)), order


def _decode(
    rows: Any, column: str, size: tuple[int, int] | None, source: str, progress: Progress
) -> tuple[npt.NDArray[np.uint8], list[int], list[str]]:
    """Return images (N, 3, H, W) uint8, the numbers of their rows, and the errors of the rows that are left out."""
    images: list[npt.NDArray[np.uint8]] = []
    decoded: list[int] = []
    broken: list[str] = []
    for index, row in enumerate(tracked(rows, f"decoding {Path(source).name}", progress, total=len(rows))):
        entry = row[column]
        try:
            image = load_image(entry["bytes"] if entry["bytes"] is not None else entry["path"])
            if size is not None:
                image = fit(image, *size)
        except ImageError as error:
            broken.append(str(error).replace("the bytes given", str(entry["path"] or f"row {index}")))
            continue
        if images and image.shape != images[0].shape:
            raise DataError(
                f"{source}: images differ in size ({image.shape[:2]} after {images[0].shape[:2]}); "
                "give the size that they shall be fitted to"
            )
        images.append(image)
        decoded.append(index)
    if len(broken) > MAX_UNREADABLE * len(rows):
        raise DataError(
            f"{source}: {len(broken)} of {len(rows)} images cannot be read, more than {MAX_UNREADABLE:.0%}: the data "
            f"is damaged, or meant for something else ({'; '.join(broken[:SHOWN])})"
        )
    if not images:
        raise DataError(f"{source} has no images")
    return np.stack(images).transpose(0, 3, 1, 2), decoded, broken


def _identity(source: str, split: str, *rest: Any) -> str:
    """Return a cache key that changes when a local source's files change."""
    place, config = located(source)
    parts = [source, split, repr(rest), _VERSION]
    if isinstance(place, Path):
        parts[0] = str(place.resolve()) + (f":{config}" if config else "")
        folder = place
        if place.is_file():  # a CSV file; its images lie in its folder, or anywhere, and are named in it
            parts.append(hashlib.sha256(place.read_bytes()).hexdigest())
            folder = place.parent
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            stat = file.stat()
            parts.append(f"{file.relative_to(folder)}:{stat.st_size}:{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
