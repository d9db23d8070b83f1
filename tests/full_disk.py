"""A disk without room, as the system itself refuses it: no code of the project is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sfumato.errors import SfumatoError

resource = pytest.importorskip("resource")  # not on Windows


@contextmanager
def disk_with_room_for(size_bytes: int) -> Iterator[None]:
    """Refuse every write beyond so many bytes of a file; Python ignores the signal and raises the OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check_whole_or_old(path: Path, write: Callable[[], object], *, steps: int = 6) -> None:
    """Check that a writer leaves the old file, and nothing else, wherever the disk is full on its way."""
    write()
    room = path.stat().st_size
    path.write_bytes(b"old")
    beside = sorted(path.parent.iterdir())
    for step in range(steps):
        with disk_with_room_for(room * step // steps), pytest.raises(SfumatoError):
            write()
        assert path.read_bytes() == b"old", f"with room for {step} of {steps} parts"
        assert sorted(path.parent.iterdir()) == beside
    write()
    assert path.stat().st_size == room
