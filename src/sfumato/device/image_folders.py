"""Images in folders of any size, found one after the other, so that a million take no more memory than ten."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
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

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """An image file.

    Attributes:
        path: where it lies.
        place: its path below the folder that was given, `/` between the parts; its name if it was given itself.
    """

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
