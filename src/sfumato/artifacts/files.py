"""Files that are whole or not there: written at once, read as JSON with errors that name the place, locked folders."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sfumato.errors import BundleError, SfumatoError

_LARGEST_BYTES = 64 << 20
_DEEPEST = 100
_LARGEST_INTEGER = 2**64
_NOT_FINITE = re.compile(r"(psnr_db|ssim|mse_bound_unbiased)$")
"""Figures that may be infinite (of equal images) or not a number (of images too small for the measure)."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which takes the place of `path` once it is complete; on an error it is removed."""
    path = path.resolve()  # of a link, the file that it points to is replaced
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(folder: Path, error: type[SfumatoError]) -> Iterator[Path]:
    """Yield a new folder that takes the place of `folder` if the block succeeds, and is removed otherwise.

    Raises:
        SfumatoError: of the given type; the disk refuses, and the old folder is as it was.
    """
    folder = folder.resolve()
    partial, former = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("partial", "former"))
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(former)
        try:
            partial.rename(folder)
        except OSError:
            if former.exists():
                former.rename(folder)
            raise
        shutil.rmtree(former, ignore_errors=True)
    except OSError as refused:
        raise error(f"{folder} cannot be written: {refused.strerror or refused}") from refused
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that the file is either the old one or the complete new one.

    Raises:
        BundleError: the disk refuses (full, read-only); the old file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror or error}") from error


def read_json(path: Path, error: type[SfumatoError] = BundleError) -> Any:
    """Return the content of a JSON file: of at most 64 MiB, 100 levels deep, with distinct keys and 64-bit integers.

    Numbers are finite, except for figures such as the PSNR of equal images.

    Raises:
        SfumatoError: of the given type; the file cannot be read, or holds anything else. It names the place.
    """
    return parse_json(read_json_bytes(path, error), path, error)


def read_json_bytes(path: Path, error: type[SfumatoError] = BundleError) -> bytes:
    """Return the bytes of a JSON file, for `parse_json`.

    Raises:
        SfumatoError: of the given type; the file cannot be read, or has more than 64 MiB.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise error(f"{path} cannot be read as JSON: it has more than {_LARGEST_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as failed:
        raise error(f"{path} cannot be read: {failed.strerror or failed}") from failed


def parse_json(content: bytes, path: Path, error: type[SfumatoError] = BundleError) -> Any:
    """Return what a JSON file's bytes hold; see `read_json`.

    Raises:
        SfumatoError: of the given type, as `read_json`.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_with_distinct_keys)
        _check(value, "", 0)
    except RecursionError:
        raise error(f"{path} cannot be read as JSON: it is more than {_DEEPEST} levels deep") from None
    except ValueError as failed:
        raise error(f"{path} cannot be read as JSON: {failed}; write it again, or copy it again") from failed
    return value


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r:.60} stands twice in one object")
    return found


def _check(value: Any, place: str, depth: int) -> None:
    """Check what JSON allows and nobody can use; a `ValueError` names the place, such as `preprocessing.mean[0]`."""
    if depth > _DEEPEST:
        raise RecursionError
    if isinstance(value, dict):
        for key, item in value.items():
            _check(key, place, depth)
            _check(item, f"{place}.{key:.60}" if place else f"{key:.60}", depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, f"{place}[{index}]", depth + 1)
    elif isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"{place or 'it'} holds half a character, which is no Unicode text")
    elif isinstance(value, float):
        if not math.isfinite(value) and not _NOT_FINITE.search(place):
            raise ValueError(f"{place or 'it'} is {value}; a finite number is expected")
    elif isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
        raise ValueError(f"{place or 'it'} has {len(str(value))} digits; a number of at most 64 bits is expected")


@contextmanager
def exclusive(folder: Path, error: type[SfumatoError], *, part: str = "") -> Iterator[None]:
    """Keep other processes out of a folder that exists, or out of a part of the work in it; ends with the process.

    Raises:
        SfumatoError: of the given type; another process works there, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # it loads asyncio, which most commands never need

    lock = folder / f".lock{part}"
    try:
        held = FileLock(lock, timeout=0).acquire()
    except Timeout:
        raise error(
            f"another process is at work in {folder}; wait for it, or stop it with Ctrl-C, which saves"
        ) from None
    except OSError as refused:
        raise error(f"the folder {folder} cannot be written: {refused.strerror or refused}") from refused
    with held:
        try:
            yield
        finally:
            with suppress(OSError):  # some systems remove no open file
                lock.unlink()
