"""Checkpoints: replaced atomically, and read without unpickling."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from sfumato.artifacts.versions import upgraded
from sfumato.errors import TrainingError


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
    except ValueError:  # not every identity is JSON
        return identity
    recipe = value.get("recipe") if isinstance(value, dict) else None
    if isinstance(recipe, dict):
        recipe.pop("note", None)
    return value


def save_checkpoint(path: Path, state: Mapping[str, object]) -> None:
    """Replace a checkpoint by a state of tensors, numbers, strings, and lists and dicts of these, under names.

    Raises:
        TrainingError: the disk refuses (full, read-only); the old checkpoint is untouched.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as stream:
            torch.save(state, stream)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        kept = f"; the previous one is kept in {path}" if path.exists() else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise TrainingError(f"the checkpoint cannot be written: {reason}{kept}; make room, then --resume") from error


def load_checkpoint(path: Path, parts: frozenset[str]) -> Mapping[str, Any]:
    """Read a checkpoint that must have these parts.

    Raises:
        TrainingError: there is none, or it is damaged, or holds something else or code.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"nothing to resume: {path} does not exist; start without --resume") from error
    except Exception as error:  # a damaged file makes the reader fail in every way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TrainingError(f"checkpoint {path} cannot be read: {reason}") from error
    if not isinstance(state, dict) or not state.keys() >= parts:
        raise TrainingError(f"{path} is not a checkpoint of sfumato")
    return state


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder that exists; the lock ends with the process.

    Raises:
        TrainingError: another process works there, or the folder cannot be written.
    """
    try:
        held = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise TrainingError(
            f"another process is at work in {folder}; wait for it, or stop it with Ctrl-C, which saves"
        ) from error
    except OSError as error:
        raise TrainingError(f"the folder {folder} cannot be written: {error.strerror or error}") from error
    with held:
        yield
