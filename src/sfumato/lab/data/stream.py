"""Training images that do not fit the memory: read shard by shard, decoded in worker processes as they are needed.

The order depends on the seed alone, never on how many workers or processes there are: a run resumes in the middle of an
epoch by skipping the rows before, without decoding them.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sfumato.device.image import fit, load_image
from sfumato.errors import DataError, ImageError
from sfumato.lab.data.image_set import SHOWN, ImageSet, class_places, content_sha256
from sfumato.lab.data.images import MAX_UNREADABLE
from sfumato.lab.data.tables import SPLIT_NAMES, find_columns, read_streams, undecoded
from sfumato.lab.libraries import first_line
from sfumato.progress import Progress, silent, tracked

BUFFER = 4096
"""Rows, not decoded, that are shuffled among each other; whole shards are shuffled as well."""
SAMPLE = 1024
"""Training images that are kept in memory, to be inspected before training."""
_CHUNK = 64
_ALL = 1 << 24
_WORKERS = 16
_FEW = 200
"""Images that must have been decoded before the share of broken ones is judged."""

_Row = tuple[bytes | str, int]
_Decoded = tuple[Tensor, Tensor, list[str]]


@dataclass(frozen=True)
class Stream:
    """Training images that are never all in memory, nor in the cache.

    Attributes:
        rows: of the training split.
        images: how many an epoch has; each epoch is a new shuffle, and has other ones where there are more.
        names: one name per class.
        sample: some of the images, from a shuffle of their own.
        sha256: hash of the sample, the classes and the size of an epoch: not all images can be hashed.
        places: the class of each label in the rows, (labels,) int64.
    """

    rows: _Rows
    images: int
    names: tuple[str, ...]
    sample: ImageSet
    sha256: str
    places: Tensor
    _count: Counter[str] = field(default_factory=Counter, repr=False)

    def __len__(self) -> int:
        return self.images

    @property
    def source(self) -> str:
        """Where the images come from, for provenance."""
        return self.rows.source

    @property
    def unreadable(self) -> int:
        """How many images could not be decoded so far; each was replaced by another one of its batch."""
        return self._count["broken"]

    def of_classes(self, labels: tuple[str, ...]) -> Stream:
        """Return the same images with a classifier's classes; see `ImageSet.of_classes`.

        Raises:
            DataError: a class of the data is none of the classifier's, or it is ambiguous which.
        """
        if self.names == labels:
            return self
        places = torch.tensor(class_places(self.names, labels, self.source))
        return replace(self, places=places[self.places], names=labels, sample=self.sample.of_classes(labels))

    def remarks(self) -> list[str]:
        """Return what a user should know of the images before training: broken ones in the sample."""
        return [remark for remark in self.sample.remarks() if "cannot be read" in remark]

    def batches(
        self, seed: int, batch_size: int, *, first: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch's batches; see `ImageSet.batches`. Every process reads all rows, and decodes its own share.

        Raises:
            DataError: the rows cannot be read, are fewer than an epoch has, or too many of the images are broken.
        """
        chunks = self._chunks(seed, batch_size, first, slice(rank, None, world_size))
        share = batch_size // world_size
        for images, labels, broken in _decoded(chunks, self.rows.size, workers=_workers(world_size)):
            self._note(share, broken)
            # A broken image is replaced by another one of the batch, so that its size stays the same.
            places = torch.arange(share) % len(labels)
            yield images[places], self.places[labels[places]]

    def _chunks(self, seed: int, batch_size: int, first: int, own: slice) -> Iterator[list[_Row]]:
        rows = islice(self.rows.shuffled(seed), first * batch_size, None)
        for step in range(first, self.images // batch_size):
            chunk = list(islice(rows, batch_size))
            if len(chunk) < batch_size:
                raise DataError(
                    f"{self.source} has fewer training images ({step * batch_size + len(chunk)}) than an epoch "
                    f"({self.images}); set data.train_images to no more than there are"
                )
            yield chunk[own]

    def _note(self, seen: int, broken: list[str]) -> None:
        self._count.update(seen=seen, broken=len(broken))
        bad, of = self._count["broken"], self._count["seen"]
        if len(broken) == seen or (of > _FEW and bad > MAX_UNREADABLE * of):
            raise DataError(
                f"{self.source}: {bad} of {of} images cannot be read: the data is damaged, or meant for something "
                f"else ({broken[0] if broken else '...'})"
            )


@dataclass(frozen=True)
class _Rows:
    """A split as `datasets` streams it, images not decoded; `paths` says that rows have these, not bytes."""

    table: Any
    columns: tuple[str, str]  # of the image and of its class
    size: tuple[int, int]
    names: tuple[str, ...]
    source: str
    paths: bool

    def shuffled(self, seed: int) -> Iterator[_Row]:
        """Yield each image's bytes, or its path, and its class, in an order that depends on the seed alone."""
        image, label = self.columns
        # Class folders come class by class, as a single shard; but paths are short, and can all be shuffled.
        table = self.table.shuffle(seed=seed, buffer_size=_ALL if self.paths else BUFFER)
        for row in _read(table, self.source):
            if row[label] is None or not 0 <= row[label] < len(self.names):
                raise DataError(
                    f"{self.source}: an image has the class {row[label]}, outside its {len(self.names)} classes"
                )
            entry = row[image] or {"bytes": b"", "path": None}
            yield entry["bytes"] if entry["bytes"] is not None else str(entry["path"]), int(row[label])

    def take(self, count: int, what: str, progress: Progress) -> ImageSet:
        """Return the first `count` images of a shuffle that is always the same; broken ones are left out."""
        rows = islice(self.shuffled(0), count)
        chunks = _decoded(iter(lambda: list(islice(rows, _CHUNK)), []), self.size, workers=_workers(1))
        images = torch.empty(count, 3, *self.size, dtype=torch.uint8)
        labels = torch.empty(count, dtype=torch.int64)
        broken: list[str] = []
        done = 0
        stage = f"reading {what}"
        for decoded, classes, failures in tracked(chunks, stage, progress, total=-(-count // _CHUNK)):
            end = done + len(classes)
            images[done:end], labels[done:end] = decoded, classes
            done, broken = end, broken + failures
        progress(stage, 1, 1)  # there may be fewer images than `count`
        if not done or len(broken) > MAX_UNREADABLE * (done + len(broken)):
            reason = f" ({broken[0]})" if broken else ""
            raise DataError(f"{self.source}: {len(broken)} of {done + len(broken)} {what} cannot be read{reason}")
        images, labels = images[:done], labels[:done]
        sha256 = content_sha256(images, labels)
        return ImageSet(images, labels, self.names, self.source, sha256, len(broken), tuple(broken[:SHOWN]))


def load_stream(
    source: str,
    size: tuple[int, int],
    *,
    train_images: int | None,
    test_images: int,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: Progress = silent,
) -> tuple[Stream, ImageSet]:
    """Open a data set's training split as a stream, and decode images of its test split.

    Args:
        source: a folder (parquet files, or one folder per class) or a hub id; see `load_images`.
        size: (height, width) that images are fitted to.
        train_images: of an epoch; None for all, where the data set says how many there are.
        test_images: at most so many are decoded, sampled from the test split, or from "validation" where there is no
            test split, or one without classes.
        image_column: see `load_images`.
        label_column: see `load_images`.
        progress: see `Progress`.

    Raises:
        DataError: the source cannot be read, lacks a split, a column or names of classes, or too many of its images
            are broken.
    """
    splits = read_streams(source)
    train = next((splits[name] for name in SPLIT_NAMES["train"] if name in splits), None)
    tests = [splits[name] for name in SPLIT_NAMES["test"] if name in splits]
    if train is None or not tests:
        raise DataError(
            f"{source} has the splits {', '.join(splits)}; a stream needs training images, and test or validation "
            "images of their own, as it cannot hold any out"
        )
    image, label, names = _columns(train, source, image_column, label_column)
    train, *tests = (undecoded(table, source, image, label) for table in (train, *tests))
    first = next(_read(train, source), None)
    rows = _Rows(train, (image, label), size, names, source, paths=first is not None and first[image]["bytes"] is None)
    for table in tests:
        first = next(_read(table, source), None)
        if first is not None and first[label] not in (None, -1):  # test splits of competitions have -1 for all
            break
    else:
        raise DataError(f"{source}: the test images have no classes in column {label!r}")
    images = train_images or _length(train)
    if images is None:
        raise DataError(f"{source} does not say how many training images it has; set data.train_images")
    sample = rows.take(min(SAMPLE, images), "training images", progress)
    held_out = replace(rows, table=table).take(test_images, "test images", progress)
    sha256 = hashlib.sha256(repr((sample.sha256, names, images)).encode()).hexdigest()
    return Stream(rows, images, names, sample, sha256, torch.arange(len(names))), held_out


def _columns(table: Any, source: str, image: str | None, label: str | None) -> tuple[str, str, tuple[str, ...]]:
    """Return the columns of the image and of its class, and the names of the classes."""
    from datasets import ClassLabel

    if table.features is None:
        raise DataError(f"{source} does not say what its columns hold, so that it cannot be streamed")
    image, label = find_columns(table, source, image, label)
    feature = table.features[label]
    if label is None or not isinstance(feature, ClassLabel):
        raise DataError(
            f"{source}: column {label!r} has no names of classes ({type(feature).__name__}, not ClassLabel), and a "
            "stream cannot be searched for them: save the data with ClassLabel, or sort it into one folder per class"
        )
    return image, label, tuple(feature.names)


def _read(table: Iterable[Any], source: str) -> Iterator[Any]:
    try:
        yield from table
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{source} cannot be read: {first_line(error)}") from error


def _length(rows: Any) -> int | None:
    split = (rows.info.splits or {}).get(str(rows.split))
    return split.num_examples or None if split is not None else None


class _Decoder(Dataset[_Decoded]):
    """Decodes rows to fitted images, in a worker process."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size

    def __getitem__(self, chunk: list[_Row]) -> _Decoded:
        """Return images (n, 3, H, W) uint8, their labels (n,) int64, and the errors of those that cannot be read."""
        fitted, labels, broken = [], [], []
        for source, label in chunk:
            try:
                fitted.append(fit(load_image(source), *self._size))
                labels.append(label)
            except ImageError as error:
                broken.append(str(error))
        stacked = np.stack(fitted) if fitted else np.empty((0, *self._size, 3), np.uint8)
        images = torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)))
        return images, torch.tensor(labels, dtype=torch.int64), broken


def _decoded(chunks: Iterator[list[_Row]], size: tuple[int, int], *, workers: int) -> Iterator[_Decoded]:
    # Its sampler yields the rows themselves, instead of indices, so that one process reads and several decode.
    loader: Any = DataLoader(
        _Decoder(size),
        sampler=chunks,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_ignore_interrupts if workers else None,
        generator=torch.Generator(),  # else it would use the one that training uses
    )
    yield from loader


def _ignore_interrupts(_worker: int) -> None:
    """Ignore Ctrl-C, which goes to every process of a terminal: the main one saves, and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the main one's handler


def _workers(processes: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_WORKERS, cores // processes - 1))
