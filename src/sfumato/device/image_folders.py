"""Images in folders of any size, found one after the other, so that a million take no more memory than ten.

And images that appear in a folder, each once it is complete.
"""

from __future__ import annotations

import os
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from sfumato.errors import ImageError

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".mpo", ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on
_SORTED_TOGETHER = 4096
"""Names of one folder that are held and sorted at once."""

POLL_S = 0.2
SETTLED_S = 0.5
"""A file that has not changed for so long is complete."""
_SHARE_OF_TIME = 0.1

T = TypeVar("T")
_State = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Found:
    """An image file: its path, and its place below the folder that was given (its name if it was given itself)."""

    path: str
    place: str


@dataclass(frozen=True, slots=True)
class Share:
    """The part of the images that one machine of several takes: its number, from 1, of how many."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ImageError(f"a share is one of several, such as 2/4; got {self.number}/{self.of}")

    def takes(self, place: str) -> bool:
        """Return whether an image belongs to this share, which does not depend on the order of the files."""
        return zlib.crc32(os.fsencode(place)) % self.of == self.number - 1


def find_images(paths: Iterable[Path], *, leave_out: Path | None = None, share: Share | None = None) -> Iterator[Found]:
    """Yield the files given, and the image files in the folders given and below.

    Folders that are links are not followed. Names are in order, except across thousands of files in one folder.

    Args:
        paths: files, which are taken whatever they are called, and folders.
        leave_out: a folder to skip, because it is written to.
        share: take only these.

    Raises:
        ImageError: a folder cannot be read.
    """
    written = None if leave_out is None else _identity(leave_out)
    for path in paths:
        inside = _below(str(path), "", written) if path.is_dir() else iter((Found(str(path), path.name),))
        for found in inside:
            if share is None or share.takes(found.place):
                yield found


def in_groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items, `size` at a time; fewer in the last group."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def _below(folder: str, place: str, written: tuple[int, int] | None) -> Iterator[Found]:
    if written is not None and _identity(Path(folder)) == written:
        return
    try:
        with os.scandir(folder) as entries:
            for group in in_groups(entries, _SORTED_TOGETHER):
                for entry in sorted(group, key=lambda entry: entry.name):
                    inner = f"{place}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        yield from _below(entry.path, f"{inner}/", written)
                    elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                        yield Found(entry.path, inner)
    except OSError as error:
        raise ImageError(f"cannot read the folder {error.filename or folder}: {error.strerror}") from error


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def new_images(folder: Path, *, every_s: float | None = None) -> Iterator[Path]:
    """Yield image files that appear in a folder or change there from now on, oldest first; never end.

    Those that lie there already are left alone, as are hidden files and folders within. A file that is still being
    written, or empty, is waited for. It polls, so it works on any file system.

    Args:
        folder: to watch.
        every_s: at most one image in so many seconds, the newest; those between are skipped.

    Returns:
        Their paths, as they become complete; what is there already is noted before this returns.

    Raises:
        ImageError: the folder cannot be read, or not any more.
    """
    return _new_images(folder, every_s, _states(folder))


def _new_images(folder: Path, every_s: float | None, taken: dict[str, _State]) -> Iterator[Path]:
    unsettled: dict[str, tuple[_State, float]] = {}
    due = 0.0
    while True:
        start = time.monotonic()
        states = _states(folder)
        taken = {name: state for name, state in taken.items() if name in states}
        changed = {name: state for name, state in states.items() if taken.get(name) != state}
        unsettled = {
            name: unsettled[name] if unsettled.get(name, (None,))[0] == state else (state, start)
            for name, state in changed.items()
        }
        ready = [name for name, (state, since) in unsettled.items() if state[1] and start - since >= SETTLED_S]
        ready.sort(key=lambda name: (states[name][0], name))
        if every_s is not None and start < due:
            ready = []
        if ready:
            taken |= {name: states[name] for name in ready}
            due = start + (every_s or 0)
            for name in ready if every_s is None else ready[-1:]:
                yield folder / name
        # Listing a folder of very many files takes long, and must not take all of the time.
        time.sleep(max(POLL_S, (time.monotonic() - start) / _SHARE_OF_TIME if not ready else 0))


def _states(folder: Path) -> dict[str, _State]:
    """Return when each image file was last written, in nanoseconds, and how many bytes it has."""
    found: dict[str, _State] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                with suppress(OSError):  # it was just deleted
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        found[entry.name] = status.st_mtime_ns, status.st_size
    except OSError as error:
        raise ImageError(f"cannot watch the folder {folder}: {error.strerror or type(error).__name__}") from None
    return found
