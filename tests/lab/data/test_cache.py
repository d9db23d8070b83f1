import errno
import hashlib

import numpy as np
import pytest
import torch

from sfumato.errors import DataError
from sfumato.lab.data import ImageSet, cache
from sfumato.lab.data.image_set import content_sha256

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
LABELS = np.array([0, 1, 0, 1, 1])
KEY = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def store(key: str = KEY, images: np.ndarray = IMAGES) -> ImageSet:
    sha256 = content_sha256(images, LABELS)
    pixels, labels = torch.from_numpy(images), torch.from_numpy(LABELS)
    return cache.store(key, ImageSet(pixels, labels, ("cat", "dög"), "here", sha256, unreadable=2))


def test_what_is_stored_is_found():
    stored = store()
    found = cache.find(KEY)
    for entry in (stored, found):
        assert np.array_equal(entry.images, IMAGES) and entry.images.dtype == torch.uint8
        assert np.array_equal(entry.labels, LABELS) and entry.labels.dtype == torch.int64
        assert (entry.names, entry.source, entry.unreadable) == (("cat", "dög"), "here", 2)
    assert found.sha256 == hashlib.sha256(IMAGES.tobytes() + LABELS.astype("<i8").tobytes()).hexdigest()


def test_images_in_another_memory_order_are_the_same_images():
    turned = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert store(images=turned).sha256 == store().sha256


def test_nothing_is_found_under_another_key():
    store()
    assert cache.find("f" * 64) is None
    assert cache.find(KEY[:32] + "f" * 32) is None, "a key that begins alike is another key"


def test_writing_to_the_images_does_not_reach_the_disk():
    entry = store()
    entry.images[:] = 0
    assert np.array_equal(cache.find(KEY).images, IMAGES)


def test_a_later_entry_replaces_the_earlier_one():
    store()
    store(images=255 - IMAGES)
    assert np.array_equal(cache.find(KEY).images, 255 - IMAGES)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "other JSON"])
def test_a_damaged_entry_is_as_good_as_none(folder, name, damage):
    store()
    (file,) = folder.glob(f"*/{name}")
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        changed = {
            "empty": b"",
            "cut": whole[:-3],
            "garbage": b"\xff" * 200,
            "other JSON": b'{"key": "%s"}' % KEY.encode(),
        }
        file.write_bytes(changed[damage])
    assert cache.find(KEY) is None
    assert np.array_equal(store().images, IMAGES), "it can be stored again"


def test_a_full_disk_is_an_error_of_ours_and_leaves_nothing(folder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", refuse)
    with pytest.raises(DataError, match=r"No space left.*SFUMATO_CACHE"):
        store()
    assert list(folder.iterdir()) == []


def test_the_cache_stands_where_it_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("SFUMATO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root() == tmp_path / "sfumato"
