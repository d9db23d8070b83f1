"""The decoded images of one split, as tensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfumato.errors import DataError
from sfumato.progress import Progress, silent, tracked

Half = Literal["first", "second"]

UNLABELLED = ("image",)
"""The one class of images without classes."""
INFERENCE_BATCH = 250
"""Images at a time through a network that is not being trained."""
SHOWN = 3
"""How many file names, classes or errors a message lists."""
_IMBALANCE = 10
"""Report classes of which one has this many times more images than another."""
_FEW_UNCLEAR = 0.01
"""The share of the classes whose names may be ambiguous where all others are in the same order."""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of one split.

    Images without classes are all of one class, 0, and `names` is `UNLABELLED`.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, each in [0, len(names)); of multi-label images (N, len(names)) int64, 1 for each class that
            is present, and 0.
        names: one name per class.
        source: where the images came from, for provenance.
        sha256: hash of pixels and labels, hex.
        unreadable: how many images of the source could not be decoded and were left out.
        broken: the errors of the first few of these.
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

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of the classes at once."""
        return self.labels.ndim == 2

    @property
    def sample(self) -> ImageSet:
        """Images to inspect before training: all of them, where a stream has only some."""
        return self

    def of_classes(self, labels: tuple[str, ...]) -> ImageSet:
        """Return the same images with a classifier's classes, in the classifier's order.

        Names are compared without case, "_" and "-"; one of several names that are separated by commas is enough, such
        as "tabby" for "tabby, tabby cat". Where the classifier or the data has only numbers for its classes, equally
        many classes are taken to be in the same order; so are they where at most one in a hundred names is ambiguous,
        and all others are in the same place. Multi-label data need a column for each of the classifier's classes.

        Raises:
            DataError: the images have no classes, a class of the data is none of the classifier's, it is ambiguous
                which, or one has no column.
        """
        if self.names == labels:
            return self
        if not self.labelled:
            raise DataError(f"{self.source}: the images have no classes, or all are in one folder")
        places = torch.tensor(class_places(self.names, labels, self.source))
        if self.multi_label:
            if missing := [name for place, name in enumerate(labels) if place not in places]:
                raise DataError(
                    f"{self.source}: {len(missing)} of the classifier's {len(labels)} classes have no column of labels "
                    f"({', '.join(missing[:SHOWN])})"
                )
            return replace(self, labels=self.labels[:, places.argsort()], names=labels)
        return replace(self, labels=places[self.labels], names=labels)

    def batches(
        self, seed: int, batch_size: int, *, first: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch's batches, in an order that depends on the seed alone; an incomplete last one is left out.

        Args:
            seed: of the order.
            batch_size: images in a batch, over all processes, of which each gets its share.
            first: the batch to begin with.
            rank: of this process.
            world_size: how many processes there are.

        Yields:
            Images (n, 3, H, W) uint8 and their `labels`, n = batch_size / world_size, where the set's tensors are.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for step in range(first, len(self) // batch_size):
            batch = order[step * batch_size : (step + 1) * batch_size][rank::world_size].to(self.images.device)
            yield self.images[batch], self.labels[batch]

    def scaled_batches(
        self, stage: str = "", progress: Progress = silent
    ) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        """Yield all images in order, `INFERENCE_BATCH` at a time, as ONNX Runtime takes them; steps are batches.

        Yields:
            Images (n, 3, H, W) float32 in [0, 1] and their `labels`.
        """
        for start in tracked(range(0, len(self), INFERENCE_BATCH), stage, progress):
            part = slice(start, start + INFERENCE_BATCH)
            yield self.images[part].numpy().astype(np.float32) / np.float32(255), self.labels[part].numpy()

    def remarks(self) -> list[str]:
        """Return what a user should know of the images: broken ones, and classes with few or none."""
        said = []
        if self.unreadable:
            shown = "; ".join(self.broken) + ("; ..." if self.unreadable > len(self.broken) else "")
            said.append(
                f"{self.source}: {self.unreadable} of {len(self) + self.unreadable} images cannot be read and were "
                f"left out ({shown})"
            )
        counts = self._counts().tolist()
        empty = [name for name, count in zip(self.names, counts, strict=True) if not count]
        if empty:
            shown = ", ".join(empty[:SHOWN]) + (", ..." if len(empty) > SHOWN else "")
            said.append(f"{self.source}: {len(empty)} of {len(self.names)} classes have no images ({shown})")
        least, most = min(filter(None, counts), default=0), max(counts)
        if most > _IMBALANCE * least and not self.multi_label:
            said.append(
                f"{self.source}: its classes are of different sizes, from {least} ({self.names[counts.index(least)]}) "
                f"to {most} ({self.names[counts.index(most)]}) images; an accuracy over all of them is mostly that of "
                "the large ones"
            )
        return said

    def _counts(self) -> Tensor:
        """Return how many images each class has, (len(names),) int64."""
        return self.labels.sum(dim=0) if self.multi_label else self.labels.bincount(minlength=len(self.names))

    def subset(self, count: int | None) -> ImageSet:
        """Return the first `count` images, or all of them if `count` is None or larger than the set."""
        return self if count is None or count >= len(self) else self._only(slice(count))

    def split(self, count: int, *, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Return the set without `count` images sampled from all over it, the same ones for a seed, and these images.

        Raises:
            DataError: the set has no more images than that.
        """
        if not 0 < count < len(self):
            raise DataError(f"{count} images cannot be held out of {len(self)}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self._only(order[count:].sort().values), self._only(order[:count].sort().values)

    def half(self, which: Half | None) -> ImageSet:
        """Return one half of the images, sampled as by `split`, or all of them for None; the first may have one more.

        Raises:
            DataError: the set has fewer than 2 images.
        """
        return self if which is None else self.split(len(self) // 2)[which == "second"]

    def _only(self, these: slice | Tensor) -> ImageSet:
        return replace(self, images=self.images[these], labels=self.labels[these])


def content_sha256(images: Tensor | npt.NDArray[np.uint8], labels: Tensor | npt.NDArray[np.int64]) -> str:
    """Return the hash of pixels (N, 3, H, W) uint8 and labels (N,) or (N, classes) int64, hex."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def class_places(names: tuple[str, ...], labels: tuple[str, ...], source: str) -> list[int]:
    """Return the place of each of the data's classes among a classifier's; see `ImageSet.of_classes`.

    Raises:
        DataError: a class of the data is none of the classifier's, or it is ambiguous which.
    """
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        whole.setdefault(_plain(label), []).append(place)
        for part in label.split(","):
            parts.setdefault(_plain(part), []).append(place)
    known = {**parts, **whole}  # the classes that a name could mean: of exactly this name, or with it among several
    unknown = [name for name in names if len(known.get(_plain(name), ())) != 1]
    if not unknown:
        places = [known[_plain(name)][0] for name in names]
        if len(set(places)) < len(places):
            raise DataError(f"{source}: two of its classes are one class of the classifier's")
        return places
    if len(labels) == len(names):
        numbered = any(all(name.isdigit() for name in side) for side in (names, labels))
        clear = [known[_plain(name)][0] == place for place, name in enumerate(names) if name not in unknown]
        # ImageNet has two cranes; with all the others in the same order, there is no doubt about a few.
        if numbered or (all(clear) and len(unknown) <= _FEW_UNCLEAR * len(names)):
            return list(range(len(labels)))
    raise DataError(
        f"{source}: {len(unknown)} of its {len(names)} classes are not, or not clearly, among the "
        f"classifier's {len(labels)} ({', '.join(unknown[:SHOWN])}; the classifier has "
        f"{', '.join(labels[:SHOWN])}, ...); name the classes of the data as the classifier does"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
