"""Decoded data sets on disk, so that images are decoded once and then memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sfumato.errors import DataError


class Decoded(NamedTuple):
    """Decoded images as arrays.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        names: one name per class.
        source: where they came from.
        sha256: hash of pixels and labels, hex.
        unreadable: how many could not be decoded.
        broken: what was wrong with the first few of these.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    source: str
    sha256: str
    unreadable: int
    broken: tuple[str, ...] = ()


def root() -> Path:
    """The cache folder: `SFUMATO_CACHE`, or `sfumato` in the user's cache folder."""
    given = os.environ.get("SFUMATO_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato"


def content_sha256(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> str:
    """Hash of pixels (N, 3, H, W) and labels (N,), hex."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def find(key: str) -> Decoded | None:
    """The entry stored under `key`, memory-mapped; None if there is none or it is damaged."""
    folder = root() / key[:32]
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        # "c": copy-on-write, which torch accepts without a copy of the whole set.
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if meta["key"] != key or len(images) != len(labels):
            return None
        names, broken = tuple(meta["names"]), tuple(meta.get("broken", ()))
        return Decoded(images, labels, names, meta["source"], meta["sha256"], meta["unreadable"], broken)
    except (OSError, EOFError, KeyError, TypeError, ValueError):
        return None


def store(
    key: str,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    *,
    names: tuple[str, ...],
    source: str,
    unreadable: int,
    broken: tuple[str, ...] = (),
) -> Decoded:
    """Stores an entry and returns it memory-mapped.

    Raises:
        DataError: the disk refuses (full, read-only).
    """
    meta: dict[str, Any] = {
        "key": key,
        "names": names,
        "source": source,
        "unreadable": unreadable,
        "broken": broken,
        "sha256": content_sha256(images, labels),
    }
    target = root() / key[:32]
    try:
        root().mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root()))
        try:
            np.save(partial / "images.npy", images)
            np.save(partial / "labels.npy", labels)
            (partial / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"the decoded images cannot be cached in {root()}: {error.strerror or error}; "
            "make room or set SFUMATO_CACHE"
        ) from error
    found = find(key)
    if found is None:
        raise DataError(f"the cache entry {target} vanished while it was written; try again")
    return found
