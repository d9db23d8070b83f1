"""One loader for every data set: pictures as one uint8 tensor, labels as another.

`datasets` (Hugging Face) reads hub ids, parquet and class folders; we decode every picture once, exactly
as the device does, and keep the result memory-mapped in a cache. Training then only indexes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sfumato.data import cache, cifar10
from sfumato.device.picture import fit, load_picture
from sfumato.errors import DataError, PictureError

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "validation", "valid", "val"),
}
_HOLD_OUT_EVERY = 5
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class ImageSet:
    """Decoded pictures of one split.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, each in [0, len(names)).
        names: one name per class.
        source: where the pictures came from, for provenance.
        sha256: hash of pixels and labels, hex.
        unreadable: how many pictures of the source could not be decoded and were left out.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    source: str
    sha256: str
    unreadable: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, count: int | None) -> ImageSet:
        """The first `count` pictures, or all of them if `count` is None or larger than the set."""
        if count is None or count >= len(self):
            return self
        return self._only(slice(count))

    def split(self, count: int) -> tuple[ImageSet, ImageSet]:
        """The set without `count` pictures drawn from all over it, always the same ones, and these pictures.

        Raises:
            DataError: the set has no more pictures than that.
        """
        if not 0 < count < len(self):
            raise DataError(f"{count} pictures cannot be held out of {len(self)}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return self._only(order[count:].sort().values), self._only(order[:count].sort().values)

    def _only(self, these: slice | Tensor) -> ImageSet:
        return ImageSet(self.images[these], self.labels[these], self.names, self.source, self.sha256, self.unreadable)


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
        source: `cifar10`, a local folder (parquet files, or one folder per class), or a hub id.
        split: "train" or "test"; a data set's "validation" serves as "test" where it has none.
        size: (height, width) in pixels that every picture is fitted to as on the device; None if all
            pictures have one size already.
        image_column: the column with the pictures; found by its type if not given.
        label_column: the column with the classes; found by its type or name if not given.
        unlabelled: pictures without classes will do; they are then all of one class, "picture".

    Raises:
        DataError: the source cannot be found or read, a column is missing, or no picture can be decoded.
    """
    if split not in _SPLIT_NAMES:
        raise DataError(f"split {split!r} is unknown; expected one of {', '.join(_SPLIT_NAMES)}")
    if source == "cifar10" and (image_column or label_column):
        raise DataError("cifar10 has one column of pictures and one of classes: name neither")
    if source == "cifar10":
        decoded = cifar10.load(split, _decode_location)
        return _as_image_set(decoded) if size in (None, (32, 32)) else _refit(decoded, size)
    return _as_image_set(_decode_location(source, split, size, image_column, label_column, unlabelled))


class _NoSplitError(DataError):
    """The data set has no such split."""


def load_train_test(
    source: str, *, size: tuple[int, int] | None = None, attributes: tuple[str, ...] = ()
) -> tuple[ImageSet, ImageSet, dict[str, tuple[Tensor, Tensor]]]:
    """Loads both splits, with classes or without, so that the first so many pictures of each are a fair sample.

    Of a data set that has but one split, every fifth picture is held out for testing. A split that comes sorted by
    class, as a folder with one folder per class does, is shuffled, the same each time.

    Args:
        source: see `load_images`.
        size: see `load_images`.
        attributes: further label columns.

    Returns:
        Training pictures (N), test pictures (M), and attribute -> values of both, (N,) and (M,) int64.

    Raises:
        DataError: see `load_images`; or an attribute has other values in one split than in the other.
    """
    splits = _both(source, size, None)
    orders = [_mixed_order(split.labels) for split in splits]
    train, test = (_part(split, order) for split, order in zip(splits, orders, strict=True))
    extra = {}
    for name in attributes:
        known, asked = _both(source, size, name)
        if known.names != asked.names:
            raise DataError(
                f"{source}: column {name!r} has other values in the training pictures than in the test ones"
            )
        extra[name] = known.labels[orders[0]], asked.labels[orders[1]]
    return train, test, extra


def _both(source: str, size: tuple[int, int] | None, label_column: str | None) -> tuple[ImageSet, ImageSet]:
    train = load_images(source, "train", size=size, label_column=label_column, unlabelled=True)
    try:
        return train, load_images(source, "test", size=size, label_column=label_column, unlabelled=True)
    except _NoSplitError:
        every = torch.arange(len(train))
        held_out = every % _HOLD_OUT_EVERY == 0
        return _part(train, every[~held_out]), _part(train, every[held_out])


def _mixed_order(labels: Tensor) -> Tensor:
    if len(set(labels.tolist())) < 2 or bool((labels[1:] < labels[:-1]).any()):
        return torch.arange(len(labels))
    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))


def _part(images: ImageSet, chosen: Tensor) -> ImageSet:
    if torch.equal(chosen, torch.arange(len(images))):
        return images
    pictures, labels = images.images[chosen], images.labels[chosen]
    sha256 = cache.content_sha256(pictures.numpy(), labels.numpy())
    return ImageSet(pictures, labels, images.names, images.source, sha256, images.unreadable)


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
    rows = _read_rows(source, split)
    image_column = image_column or _find_image_column(rows, source)
    label_column = label_column or _find_label_column(rows, source, unlabelled=unlabelled)
    for column in (image_column, label_column):
        if column is not None and column not in rows.column_names:
            raise DataError(f"{source} has no column {column!r}; it has {', '.join(rows.column_names)}")
    names, labels = _labels(rows, label_column, source, unlabelled=unlabelled)
    images, kept = _decode(rows, image_column, size, source)
    return cache.store(
        key,
        images,
        labels[kept],
        names=names,
        source=source,
        unreadable=len(labels) - len(kept),
    )


def _read_rows(source: str, split: str) -> Any:
    from datasets import disable_progress_bars, load_dataset

    folder = Path(source).expanduser()
    if not folder.exists() and ("\\" in source or source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise DataError(f"no data at {source}: a folder with parquet files or one folder per class is expected")
    disable_progress_bars()
    try:
        everything = load_dataset(str(folder) if folder.exists() else source)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"data set {source!r} cannot be loaded: {_first_line(error)}") from error
    for name in _SPLIT_NAMES[split]:
        if name in everything:
            return everything[name]
    raise _NoSplitError(f"{source} has no {split} split; it has {', '.join(everything)}")


def _find_image_column(rows: Any, source: str) -> str:
    from datasets import Image

    found = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    if len(found) != 1:
        raise DataError(
            f"{source} has {len(found)} picture columns ({', '.join(found) or 'none'}); name one with image_column"
        )
    return str(found[0])


def _find_label_column(rows: Any, source: str, *, unlabelled: bool) -> str | None:
    from datasets import ClassLabel

    found = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    if len(found) != 1:
        found = [name for name in _LABEL_COLUMNS if name in rows.column_names][:1]
    if not found and unlabelled:
        return None
    if len(found) != 1:
        raise DataError(f"{source} has no obvious label column among {', '.join(rows.column_names)}; name label_column")
    return str(found[0])


def _labels(
    rows: Any, column: str | None, source: str, *, unlabelled: bool
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    from datasets import ClassLabel, Value

    if column is None or (unlabelled and None in rows[column]):
        return ("picture",), np.zeros(len(rows), np.int64)
    if None in rows[column]:
        raise DataError(f"{source}: some pictures have no class in column {column!r}; give each one, or leave them out")
    feature = rows.features[column]
    if not isinstance(feature, ClassLabel | Value):
        raise DataError(f"{source}: column {column!r} holds {type(feature).__name__}, not one class per picture")
    values = rows[column]
    if isinstance(feature, ClassLabel):
        labels = np.asarray(values, dtype=np.int64)
        if labels.size and (labels.min() < 0 or labels.max() >= len(feature.names)):
            raise DataError(f"{source}: column {column!r} has labels outside its {len(feature.names)} classes")
        return tuple(feature.names), labels
    names = sorted({str(v) for v in values}, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0, v))
    index = {name: i for i, name in enumerate(names)}
    return tuple(names), np.asarray([index[str(v)] for v in values], dtype=np.int64)


def _decode(
    rows: Any, column: str, size: tuple[int, int] | None, source: str
) -> tuple[npt.NDArray[np.uint8], list[int]]:
    from datasets import Image

    # Undecoded bytes: one broken file then costs one picture, not the run.
    try:
        rows = rows.select_columns([column]).cast_column(column, Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise DataError(f"{source}: column {column!r} holds no pictures: {_first_line(error)}") from error
    pictures: list[npt.NDArray[np.uint8]] = []
    kept: list[int] = []
    console = Console(stderr=True)
    for index, row in enumerate(
        track(rows, description=f"decoding {Path(source).name}", console=console, transient=True)
    ):
        entry = row[column]
        try:
            picture = load_picture(entry["bytes"] if entry["bytes"] is not None else entry["path"])
            if size is not None:
                picture = fit(picture, *size)
        except PictureError:
            continue
        if pictures and picture.shape != pictures[0].shape:
            raise DataError(
                f"{source}: pictures differ in size ({picture.shape[:2]} after {pictures[0].shape[:2]}); "
                "give the size that they shall be fitted to"
            )
        pictures.append(picture)
        kept.append(index)
    if not pictures:
        raise DataError(f"{source}: none of {len(rows)} pictures could be decoded")
    return np.stack(pictures).transpose(0, 3, 1, 2), kept


def _identity(source: str, split: str, *rest: Any) -> str:
    """A cache key that changes when a local source's files change."""
    folder = Path(source).expanduser()
    parts = [source, split, repr(rest)]
    if folder.exists():
        parts[0] = str(folder.resolve())
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
    )


def _refit(decoded: cache.Decoded, size: tuple[int, int] | None) -> ImageSet:
    assert size is not None
    images = np.stack([fit(picture.transpose(1, 2, 0), *size) for picture in decoded.images]).transpose(0, 3, 1, 2)
    return _as_image_set(decoded._replace(images=images))


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    # Copy-on-write mapping: torch wants writable memory, and nobody here writes to it.
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
