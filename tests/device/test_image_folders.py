"""Finding images: the tree, the order, what is left out, and that nothing is held."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.device.image_folders import Share, find_images, in_groups
from sfumato.errors import ImageError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in ("b.png", "a.JPG", "notes.txt", "sub/c.webp", "sub/deep/d.png", "out/e.obfuscated.png"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    return root


def places(*arguments: object, **options: object) -> list[str]:
    return [found.place for found in find_images(*arguments, **options)]  # type: ignore[arg-type]


def test_the_tree_is_kept_and_in_order(tree: Path) -> None:
    found = list(find_images([tree], leave_out=tree / "out"))
    assert [one.place for one in found] == ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.png"]
    assert [one.path for one in found] == [str(tree / one.place) for one in found]


def test_what_is_written_to_is_not_read_under_whatever_name(tree: Path) -> None:
    assert "out/e.obfuscated.png" in places([tree])
    assert not [place for place in places([tree], leave_out=tree / "sub" / ".." / "out") if "out" in place]


def test_files_are_taken_as_they_are_given(tree: Path) -> None:
    assert places([tree / "notes.txt", tree / "missing.png"]) == ["notes.txt", "missing.png"]


def test_links_to_folders_are_not_followed(tree: Path) -> None:
    (tree / "loop").symlink_to(tree, target_is_directory=True)
    (tree / "linked.png").symlink_to(tree / "b.png")
    assert places([tree / "sub"]) == ["c.webp", "deep/d.png"]
    assert [place for place in places([tree]) if "loop" in place] == []
    assert "linked.png" in places([tree])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_told(tree: Path) -> None:
    (tree / "sub").chmod(0)
    try:
        with pytest.raises(ImageError, match="sub"):
            places([tree])
    finally:
        (tree / "sub").chmod(0o755)


def test_shares_are_disjoint_and_all_of_it(tree: Path) -> None:
    for index in range(50):
        (tree / f"{index}.png").write_bytes(b"")
    shares = [set(places([tree], share=Share(number, 3))) for number in (1, 2, 3)]
    assert sum(map(len, shares)) == len(set.union(*shares)) == len(places([tree]))
    assert min(map(len, shares)) > 5, "about equal"
    for number, of in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(ImageError, match="2/4"):
            Share(number, of)


def test_groups() -> None:
    assert list(in_groups(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(in_groups([], 2)) == []


_PEAK = """
import sys, tracemalloc
from pathlib import Path
from sfumato.device.image_folders import find_images
tracemalloc.start()
count = sum(1 for _ in find_images([Path(sys.argv[1])]))
print(count, tracemalloc.get_traced_memory()[1])
"""


def test_a_large_folder_takes_no_more_memory_than_a_smaller_one(tmp_path: Path) -> None:
    peaks = []
    for count in (9_000, 20_000):  # names are held in groups of some thousands
        folder = tmp_path / str(count)
        folder.mkdir()
        for index in range(count):
            os.close(os.open(folder / f"{index:06d}.png", os.O_CREAT))
        # in a process of its own, where no thread of another test takes memory meanwhile
        told = subprocess.run([sys.executable, "-c", _PEAK, folder], check=True, capture_output=True, text=True).stdout
        found, peak = map(int, told.split())
        assert found == count
        peaks.append(peak)
    assert peaks[1] < 1.2 * peaks[0], peaks
