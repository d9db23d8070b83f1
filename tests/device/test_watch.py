"""Images that appear in a folder: each once, complete, and oldest first."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato.device import image_folders
from sfumato.device.image_folders import new_images
from sfumato.errors import ImageError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "POLL_S", 0.01)
    monkeypatch.setattr(image_folders, "SETTLED_S", 0.15)


def next_of(found: Iterator[Path], seconds: float = 5.0) -> str:
    """The next one's name; fails instead of waiting for ever."""
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.append(next(found).name), daemon=True)
    thread.start()
    thread.join(seconds)
    assert names, "nothing was found"
    return names[0]


def write(path: Path, content: bytes = b"image", age_s: float = 0) -> None:
    path.write_bytes(content)
    os.utime(path, (time.time() - age_s,) * 2)


def test_what_appears_is_found_once_and_what_was_there_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "old.png")
    found = new_images(tmp_path)
    for name in ("notes.txt", ".hidden.png", "first.PNG"):
        write(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    assert next_of(found) == "first.PNG"
    write(tmp_path / "second.png")
    assert next_of(found) == "second.png"


def test_a_file_that_changes_later_is_a_new_image(tmp_path: Path) -> None:
    found = new_images(tmp_path)
    write(tmp_path / "latest.png")
    assert next_of(found) == "latest.png"
    write(tmp_path / "latest.png", b"another one")
    assert next_of(found) == "latest.png"


def test_a_file_that_is_still_written_is_waited_for(tmp_path: Path) -> None:
    found = new_images(tmp_path)
    done = threading.Event()

    def slowly() -> None:
        with (tmp_path / "slow.png").open("wb") as file:
            for _ in range(10):
                file.write(b"piece")
                file.flush()
                time.sleep(0.04)
        done.set()

    (tmp_path / "empty.png").touch()
    threading.Thread(target=slowly).start()
    assert next_of(found) == "slow.png"
    assert done.is_set()


def test_the_oldest_comes_first(tmp_path: Path) -> None:
    found = new_images(tmp_path)
    for name, age_s in (("a", 1), ("b", 3), ("c", 2)):
        write(tmp_path / f"{name}.png", age_s=age_s)
    assert [next_of(found) for _ in range(3)] == ["b.png", "c.png", "a.png"]


def test_every_so_often_the_newest(tmp_path: Path) -> None:
    found = new_images(tmp_path, every_s=0.6)
    write(tmp_path / "a.png", age_s=9)
    write(tmp_path / "b.png", age_s=8)
    assert next_of(found) == "b.png"
    start = time.monotonic()
    write(tmp_path / "c.png", age_s=7)
    write(tmp_path / "d.png", age_s=6)
    assert next_of(found) == "d.png"
    assert time.monotonic() - start > 0.3


def test_a_folder_that_is_not_there_or_goes(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot watch"):
        new_images(tmp_path / "none")
    folder = tmp_path / "folder"
    folder.mkdir()
    found = new_images(folder)
    folder.rmdir()
    with pytest.raises(ImageError, match="cannot watch"):
        next(found)
