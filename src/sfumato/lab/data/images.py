"""One loader for every data set: images as one uint8 tensor, labels as another.

`datasets` (Hugging Face) reads hub ids, parquet and class folders; we decode every image once, exactly
as the device does, and keep the result memory-mapped in a cache. Training then only indexes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sfumato.device.image import fit, load_image
from sfumato.errors import DataError, ImageError
from sfumato.lab.data import cache, cifar10, faces
from sfumato.lab.data.classes import class_places
from sfumato.lab.data.tables import (
    SPLIT_NAMES,
    UNLABELLED,
    find_image_column,
    find_label_column,
    first_line,
    located,
    read_labels,
    read_rows,
)

MAX_UNREADABLE = 0.2
"""The share of a split's images that may be broken; with more, it is the data that is wrong."""
_NAMED = 3
_CACHED_AS = "2"  # changes when the same source and split come to mean other images
_IMBALANCE = 10
"""How many times more images one class may have than another before that is said."""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of one split.

    Images without classes are all of one class, 0, and `names` is `UNLABELLED`.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, each in [0, len(names)).
        names: one name per class.
        source: where the images came from, for provenance.
        sha256: hash of pixels and labels, hex.
        unreadable: how many images of the source could not be decoded and were left out.
        broken: what was wrong with the first few of these.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    source: str
    sha256: str
    unreadable: int = 0
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether the images have classes."""
        return self.names != UNLABELLED

    def of_classes(self, labels: tuple[str, ...]) -> ImageSet:
        """The same images with a classifier's classes, in the classifier's order.

        Names are compared without case, "_" and "-"; one of several names that are separated by commas will do, as
        "tabby" for "tabby, tabby cat". Where the classifier or the data has only numbers for its classes, equally many
        classes are taken to be in the same order; so are they where at most one in a hundred names is unclear, and all
        others are in the same place.

        Args:
            labels: the classifier's, in the order of its outputs.

        Raises:
            DataError: a class of the data is none of the classifier's, or it is not clear which.
        """
        if self.names == labels:
            return self
        places = torch.tensor(class_places(self.names, labels, self.source))
        return replace(self, labels=places[self.labels], names=labels)

    @property
    def sample(self) -> ImageSet:
        """Images to look at before training: all of them, where a stream has some."""
        return self

    def batches(
        self, seed: int, batch_size: int, *, first: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch's batches, in an order that depends on the seed alone; the rest that fills none is left out.

        Args:
            seed: of the order.
            batch_size: images in a batch, over all processes.
            first: the batch to begin with.
            rank: of this process, which gets its share of each batch.
            world_size: how many processes there are.

        Yields:
            Images (n, 3, H, W) uint8 and labels (n,) int64, n = batch_size / world_size, where the set's tensors are.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for step in range(first, len(self) // batch_size):
            batch = order[step * batch_size : (step + 1) * batch_size][rank::world_size].to(self.images.device)
            yield self.images[batch], self.labels[batch]

    def remarks(self) -> list[str]:
        """What people should know of the images: broken ones, and classes with few or none."""
        said = []
        if self.unreadable:
            shown = "; ".join(self.broken) + ("; ..." if self.unreadable > len(self.broken) else "")
            said.append(
                f"{self.source}: {self.unreadable} of {len(self) + self.unreadable} images cannot be read and were "
                f"left out ({shown})"
            )
        counts = self.labels.bincount(minlength=len(self.names))
        empty = [name for name, count in zip(self.names, counts.tolist(), strict=True) if not count]
        if empty:
            shown = ", ".join(empty[:_NAMED]) + (", ..." if len(empty) > _NAMED else "")
            said.append(f"{self.source}: {len(empty)} of {len(self.names)} classes have no images ({shown})")
        some = counts[counts > 0]
        if len(some) and int(some.max()) > _IMBALANCE * int(some.min()):
            most, least = self.names[int(counts.argmax())], self.names[counts.tolist().index(int(some.min()))]
            said.append(
                f"{self.source}: its classes are of different sizes, from {int(some.min())} ({least}) to "
                f"{int(some.max())} ({most}) images; an accuracy over all of them is mostly that of the large ones"
            )
        return said

    def subset(self, count: int | None) -> ImageSet:
        """The first `count` images, or all of them if `count` is None or larger than the set."""
        if count is None or count >= len(self):
            return self
        return self._only(slice(count))

    def split(self, count: int) -> tuple[ImageSet, ImageSet]:
        """The set without `count` images drawn from all over it, always the same ones, and these images.

        Raises:
            DataError: the set has no more images than that.
        """
        if not 0 < count < len(self):
            raise DataError(f"{count} images cannot be held out of {len(self)}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return self._only(order[count:].sort().values), self._only(order[:count].sort().values)

    def _only(self, these: slice | Tensor) -> ImageSet:
        return replace(self, images=self.images[these], labels=self.labels[these])


def load_images(
    source: str,
    split: str,
    *,
    size: tuple[int, int] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    unlabelled: bool = False,
) -> ImageSet:
    """Loads one split of a data set, decoded; from the cache where it was decoded before.

    Args:
        source: `cifar10`, `faces` (see `sfumato.lab.data.faces`), a local folder (parquet files, IDX files, or one
            folder per class), a CSV file of paths and classes, or a hub id, as `owner/name:configuration` where the
            data set has several configurations.
        split: "train" or "test"; a data set's "validation" serves as "test" where it has none, and every fifth
            training image where it has no such split either; that image then is no training image.
        size: (height, width) in pixels that every image is fitted to as on the device; None if all
            images have one size already.
        image_column: the column with the images; found by its type if not given.
        label_column: the column with the classes; found by its type or name if not given.
        unlabelled: images without classes will do; see `ImageSet`.

    Raises:
        DataError: the source cannot be found or read, a column is missing, or more than `MAX_UNREADABLE` of the
            images are broken.
    """
    if split not in SPLIT_NAMES:
        raise DataError(f"split {split!r} is unknown; expected one of {', '.join(SPLIT_NAMES)}")
    if source == "cifar10" and (image_column or label_column):
        raise DataError("cifar10 has one column of images and one of classes: name neither")
    if source == "cifar10":
        decoded = cifar10.load(split, _decode_location)
        return _as_image_set(decoded) if size in (None, (32, 32)) else _refit(decoded, size)
    if source in faces.SOURCES:
        if image_column not in (None, "image"):
            raise DataError(f"{source} has no column {image_column!r} of images; it is called 'image'")
        return _as_image_set(faces.load(source, split, size, label_column))
    return _as_image_set(_decode_location(source, split, size, image_column, label_column, unlabelled))


def load_train_test(
    source: str,
    *,
    size: tuple[int, int] | None = None,
    label_column: str | None = None,
    attributes: tuple[str, ...] = (),
) -> tuple[ImageSet, ImageSet, dict[str, tuple[Tensor, Tensor]]]:
    """Loads both splits, with classes or without, so that the first so many images of each are a fair sample.

    A split that comes sorted by class, as a folder with one folder per class does, is shuffled, the same each time.

    Args:
        source: see `load_images`.
        size: see `load_images`.
        label_column: see `load_images`.
        attributes: further label columns.

    Returns:
        Training images (N), test images (M), and attribute -> values of both, (N,) and (M,) int64.

    Raises:
        DataError: see `load_images`; or an attribute has other values in one split than in the other.
    """
    splits = _both(source, size, label_column)
    orders = [_mixed_order(split.labels) for split in splits]
    train, test = (_part(split, order) for split, order in zip(splits, orders, strict=True))
    extra = {}
    for name in attributes:
        (names, known), (others, asked) = (
            _column(source, split, size, name, images.unreadable)
            for split, images in zip(("train", "test"), splits, strict=True)
        )
        if names != others:
            raise DataError(f"{source}: column {name!r} has other values in the training images than in the test ones")
        extra[name] = known[orders[0]], asked[orders[1]]
    return train, test, extra


def _both(source: str, size: tuple[int, int] | None, label_column: str | None) -> tuple[ImageSet, ImageSet]:
    train, test = (
        load_images(source, split, size=size, label_column=label_column, unlabelled=True) for split in ("train", "test")
    )
    return train, test


def _column(
    source: str, split: str, size: tuple[int, int] | None, name: str, unreadable: int
) -> tuple[tuple[str, ...], Tensor]:
    """A label column's names and values, (N,) int64; without the images, where none of them was left out."""
    if unreadable or source in ("cifar10", *faces.SOURCES):
        images = load_images(source, split, size=size, label_column=name)
        return images.names, images.labels
    rows = read_rows(source, split)
    if name not in rows.column_names:
        raise DataError(f"{source} has no column {name!r}; it has {', '.join(rows.column_names)}")
    names, values = read_labels(rows, name, source, unlabelled=False)
    return names, torch.from_numpy(values)


def _mixed_order(labels: Tensor) -> Tensor:
    if len(set(labels.tolist())) < 2 or bool((labels[1:] < labels[:-1]).any()):
        return torch.arange(len(labels))
    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))


def _part(images: ImageSet, chosen: Tensor) -> ImageSet:
    if torch.equal(chosen, torch.arange(len(images))):
        return images
    kept, labels = images.images[chosen], images.labels[chosen]
    sha256 = cache.content_sha256(kept.numpy(), labels.numpy())
    return replace(images, images=kept, labels=labels, sha256=sha256)


def _decode_location(
    source: str,
    split: str,
    size: tuple[int, int] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    unlabelled: bool = False,
) -> cache.Decoded:
    key = _identity(
        source, split, size, image_column, label_column or (unlabelled and "label, if there is one") or None
    )
    found = cache.find(key)
    if found is not None:
        return found
    rows = read_rows(source, split, image_column)
    image_column = image_column or find_image_column(rows, source)
    label_column = label_column or find_label_column(rows, source, unlabelled=unlabelled)
    for column in (image_column, label_column):
        if column is not None and column not in rows.column_names:
            raise DataError(f"{source} has no column {column!r}; it has {', '.join(rows.column_names)}")
    names, labels = read_labels(rows, label_column, source, unlabelled=unlabelled)
    images, kept, broken = _decode(rows, image_column, size, source)
    return cache.store(
        key,
        images,
        labels[kept],
        names=names,
        source=source,
        unreadable=len(labels) - len(kept),
        broken=tuple(broken[:_NAMED]),
    )


def _decode(
    rows: Any, column: str, size: tuple[int, int] | None, source: str
) -> tuple[npt.NDArray[np.uint8], list[int], list[str]]:
    """Images (N, H, W, 3) as (N, 3, H, W) uint8, the places of their rows, and what was wrong with the others."""
    from datasets import Image

    # Undecoded bytes: one broken file then costs one image, not the run.
    try:
        rows = rows.select_columns([column]).cast_column(column, Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise DataError(f"{source}: column {column!r} holds no images: {first_line(error)}") from error
    images: list[npt.NDArray[np.uint8]] = []
    kept: list[int] = []
    broken: list[str] = []
    console = Console(stderr=True)
    for index, row in enumerate(
        track(rows, description=f"decoding {Path(source).name}", console=console, transient=True)
    ):
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
        kept.append(index)
    if len(broken) > MAX_UNREADABLE * len(rows):
        raise DataError(
            f"{source}: {len(broken)} of {len(rows)} images cannot be read, more than {MAX_UNREADABLE:.0%}: the data "
            f"is damaged, or meant for something else ({'; '.join(broken[:_NAMED])})"
        )
    if not images:
        raise DataError(f"{source} has no images")
    return np.stack(images).transpose(0, 3, 1, 2), kept, broken


def _identity(source: str, split: str, *rest: Any) -> str:
    """A cache key that changes when a local source's files change."""
    place, config = located(source)
    parts = [source, split, repr(rest), _CACHED_AS]
    if isinstance(place, Path):
        parts[0] = str(place.resolve()) + (f":{config}" if config else "")
        folder = place
        if place.is_file():  # a CSV file; its images lie beside it, or anywhere, and are named in it
            parts.append(hashlib.sha256(place.read_bytes()).hexdigest())
            folder = place.parent
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            stat = file.stat()
            parts.append(f"{file.relative_to(folder)}:{stat.st_size}:{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _as_image_set(decoded: cache.Decoded) -> ImageSet:
    return ImageSet(
        images=_tensor(decoded.images),
        labels=_tensor(decoded.labels),
        names=decoded.names,
        source=decoded.source,
        sha256=decoded.sha256,
        unreadable=decoded.unreadable,
        broken=decoded.broken,
    )


def _refit(decoded: cache.Decoded, size: tuple[int, int] | None) -> ImageSet:
    assert size is not None
    images = np.stack([fit(image.transpose(1, 2, 0), *size) for image in decoded.images]).transpose(0, 3, 1, 2)
    return _as_image_set(decoded._replace(images=images))


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    # Copy-on-write mapping: torch wants writable memory, and nobody here writes to it.
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())
