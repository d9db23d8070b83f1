"""Decoded data sets on disk, so that images are decoded once and then memory-mapped."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from sfumato.artifacts.files import read_json
from sfumato.errors import DataError
from sfumato.lab.data.image_set import ImageSet


def root() -> Path:
    """Return the cache folder: `SFUMATO_CACHE`, or `sfumato` in the user's cache folder."""
    chosen = os.environ.get("SFUMATO_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato"


def find(key: str) -> ImageSet | None:
    """Return the entry stored under `key`, memory-mapped; None if there is none or it is damaged."""
    folder = root() / key[:32]
    try:
        meta = read_json(folder / "meta.json", DataError)
        # "c": copy-on-write, which torch accepts without a copy of the whole set.
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if meta["key"] != key or images.shape[:2] != (len(labels), 3) or images.ndim != 4:
            return None
        if (images.dtype, labels.dtype) != (np.uint8, np.int64):
            return None
        if labels.shape[1:] not in ((), (len(meta["names"]),)):
            return None
        names, broken = tuple(meta["names"]), tuple(meta.get("broken", ()))
        tensors = torch.from_numpy(images), torch.from_numpy(labels)
        return ImageSet(*tensors, names, meta["source"], meta["sha256"], meta["unreadable"], broken)
    except (DataError, OSError, EOFError, KeyError, TypeError, ValueError):
        return None


def store(key: str, entry: ImageSet) -> ImageSet:
    """Store an entry and return it memory-mapped.

    Raises:
        DataError: the disk is full or read-only.
    """
    facts = ("names", "source", "unreadable", "broken", "sha256")
    meta = {"key": key, **{name: getattr(entry, name) for name in facts}}
    target = root() / key[:32]
    try:
        root().mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root()))
        try:
            np.save(partial / "images.npy", entry.images.numpy())
            np.save(partial / "labels.npy", entry.labels.numpy())
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
