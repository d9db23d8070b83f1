"""Images that appear in a folder, each once it is complete."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from sfumato.errors import ImageError

POLL_S = 0.2
SETTLED_S = 0.5
"""A file that has not changed for so long is complete."""
_SHARE_OF_TIME = 0.1

_State = tuple[int, int]


def new_images(folder: Path, suffixes: Collection[str], *, every_s: float | None = None) -> Iterator[Path]:
    """Yield image files that appear in a folder or change there from now on, oldest first; never end.

    Those that lie there already are left alone, as are hidden files and folders within. A file that is still being
    written, or empty, is waited for. It polls, so it works on any file system.

    Args:
        folder: to watch.
        suffixes: of image files, in lower case, with the dot.
        every_s: at most one image in so many seconds, the newest; those between are skipped.

    Returns:
        Their paths, as they become complete; what is there already is noted before this returns.

    Raises:
        ImageError: the folder cannot be read, or not any more.
    """
    return _new_images(folder, suffixes, every_s, _states(folder, suffixes))


def _new_images(
    folder: Path, suffixes: Collection[str], every_s: float | None, taken: dict[str, _State]
) -> Iterator[Path]:
    unsettled: dict[str, tuple[_State, float]] = {}
    due = 0.0
    while True:
        start = time.monotonic()
        states = _states(folder, suffixes)
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


def _states(folder: Path, suffixes: Collection[str]) -> dict[str, _State]:
    """Return when each image file was last written, in nanoseconds, and how many bytes it has."""
    found: dict[str, _State] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in suffixes:
                    continue
                try:
                    status = entry.stat()
                except OSError:  # it was just deleted
                    continue
                if stat.S_ISREG(status.st_mode):
                    found[entry.name] = status.st_mtime_ns, status.st_size
    except OSError as error:
        raise ImageError(f"cannot watch the folder {folder}: {error.strerror or type(error).__name__}") from None
    return found
