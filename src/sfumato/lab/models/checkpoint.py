"""Checkpoints: replaced atomically, checked when they are read, and read without unpickling.

A checkpoint is a zip archive, as torch writes it, whose comment is the SHA-256 of all that comes before it. Those of
earlier versions have no comment; they are checked by the CRC-32 of every tensor and of the structure that holds them.
The one before it is kept, and used where the newest is damaged.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sfumato.artifacts.files import whole_file
from sfumato.artifacts.versions import upgraded
from sfumato.errors import TrainingError

log = logging.getLogger(__name__)

_SEAL = b"sha256:"
_SEAL_BYTES = len(_SEAL) + 64


def identify(*parts: Any) -> str:
    """Return the identity of a run as text: plain values, and tensors by their hash."""
    said = [sha256(part.contiguous().numpy().data).hexdigest() if isinstance(part, Tensor) else part for part in parts]
    return json.dumps(said, sort_keys=True, default=str)


def same_identity(stored: str, wanted: str) -> bool:
    """Return whether two identities are of one run: key names of earlier versions and a recipe's note do not count."""
    return bool(_comparable(stored) == _comparable(wanted))


def _comparable(identity: str) -> Any:
    try:
        value = upgraded(json.loads(identity))
    except (RecursionError, ValueError):  # not every identity is JSON
        return identity
    recipe = value.get("recipe") if isinstance(value, dict) else None
    if isinstance(recipe, dict):
        recipe.pop("note", None)
    return value


def save_checkpoint(path: Path, state: Mapping[str, object]) -> None:
    """Replace a checkpoint by a state of tensors, numbers, strings, and lists and dicts of these, under names.

    The one that was there is kept as `NAME.previous`.

    Raises:
        TrainingError: the disk refuses (full, read-only); the old checkpoints are untouched.
    """
    try:
        with whole_file(path) as partial:
            with partial.open("w+b") as stream:
                torch.save(state, stream)
                _seal(stream)
            if path.exists():
                _keep(path)
    except (OSError, RuntimeError) as error:
        kept = f"; the previous one is kept in {path}" if path.exists() else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise TrainingError(f"the checkpoint cannot be written: {reason}{kept}; make room, then --resume") from error


def load_checkpoint(path: Path, parts: frozenset[str]) -> Mapping[str, Any]:
    """Read a checkpoint that must have these parts; if it is damaged, the one before it, which is logged.

    Raises:
        TrainingError: there is none, or both are damaged, or hold something else or code.
    """
    try:
        return _read(path, parts)
    except TrainingError as damaged:
        previous = _previous(path)
        if not previous.is_file():
            raise
        try:
            state = _read(previous, parts)
        except TrainingError:
            raise damaged from None
        log.warning("%s; the one before it is used, %s", damaged, previous)
        return state


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, if there is one, and the one before it."""
    path.unlink(missing_ok=True)
    _previous(path).unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def _keep(path: Path) -> None:
    """Keep a checkpoint under its second name; where the disk can, it has both until it is replaced."""
    previous = _previous(path)
    previous.unlink(missing_ok=True)
    try:
        os.link(path, previous)
    except OSError:
        path.replace(previous)


def _seal(stream: BinaryIO) -> None:
    """Append the checksum of an archive as its comment."""
    stream.seek(-2, os.SEEK_END)  # where the archive says how long its comment is
    stream.write(_SEAL_BYTES.to_bytes(2, "little"))
    stream.write(_sealed(stream, stream.tell()))


def _sealed(stream: BinaryIO, size: int) -> bytes:
    """Return what the first bytes of an archive are sealed with; the position is after them."""
    stream.seek(0)
    hashed = sha256()
    while part := stream.read(min(size, 1 << 20)):
        hashed.update(part)
        size -= len(part)
    return _SEAL + hashed.hexdigest().encode()


def _check(path: Path) -> None:
    """Check that no bit of an archive has changed.

    Raises:
        ValueError: one has.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _SEAL_BYTES))
        seal = stream.read()
        if seal.startswith(_SEAL):
            damaged = "the file" if seal != _sealed(stream, size - _SEAL_BYTES) else None
        else:
            with zipfile.ZipFile(stream) as archive:
                damaged = "the file" if archive.comment else archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} does not match: bits have changed on the disk")


def _read(path: Path, parts: frozenset[str]) -> Mapping[str, Any]:
    try:
        _check(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"nothing to resume: {path} does not exist; start without --resume") from error
    except Exception as error:  # a damaged file makes the readers fail in every way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TrainingError(f"checkpoint {path} cannot be read: {reason}") from error
    if not isinstance(state, dict) or not state.keys() >= parts:
        raise TrainingError(f"{path} is not a checkpoint of sfumato")
    return state
