"""Where CIFAR-10 comes from, with a few made-up images in its place; the real ones need `SFUMATO_CIFAR10`."""

import io
import json
import os
import stat
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import DataError
from sfumato.lab.data import ImageSet, cifar10, load_images
from sfumato.lab.data.image_set import content_sha256
from synthetic import pixels

FOLDER = os.environ.get(cifar10.FOLDER_VARIABLE)
COUNT = 6
IMAGES = {split: pixels(COUNT, seed=seed).transpose(0, 3, 1, 2).copy() for seed, split in enumerate(("train", "test"))}
LABELS = np.array([3, 1, 4, 1, 5, 9])


def decoded(split: str, *, damaged: bool = False) -> ImageSet:
    images = torch.from_numpy(255 - IMAGES[split] if damaged else IMAGES[split])
    labels, names = torch.from_numpy(LABELS), tuple(str(i) for i in range(10))
    return ImageSet(images, labels, names, "made up", content_sha256(images, labels))


def unexpected(*_):
    raise AssertionError("this place should not have been asked")


def unreachable(*_):
    raise DataError("not reached (Timeout)")


@pytest.fixture(autouse=True)
def made_up(monkeypatch, tmp_path):
    """The hashes are those of the made-up images; the cache is empty, and no place has them."""
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cifar10.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(cifar10, "SHA256", {split: decoded(split).sha256 for split in IMAGES})
    monkeypatch.setattr(cifar10, "_from_hub", unexpected)
    monkeypatch.setattr(cifar10, "_from_npm", unexpected)


def test_the_hub_is_asked_first(monkeypatch):
    monkeypatch.setattr(cifar10, "_from_hub", lambda split, _: decoded(split))
    found = load_images("cifar10", "test")
    assert np.array_equal(found.images.numpy(), IMAGES["test"])
    assert found.names == cifar10.NAMES and found.source == "cifar10"


@pytest.mark.parametrize("hub", [unreachable, lambda split, _: decoded(split, damaged=True)])
def test_npm_is_asked_where_the_hub_is_out_of_reach_or_has_something_else(monkeypatch, hub):
    monkeypatch.setattr(cifar10, "_from_hub", hub)
    monkeypatch.setattr(cifar10, "_from_npm", lambda split, _: decoded(split))
    assert np.array_equal(load_images("cifar10", "train").images.numpy(), IMAGES["train"])


def test_without_any_place_each_reason_is_told(monkeypatch):
    monkeypatch.setattr(cifar10, "_from_hub", unreachable)
    monkeypatch.setattr(cifar10, "_from_npm", lambda split, _: decoded(split, damaged=True))
    with pytest.raises(DataError, match=r"the hub: not reached.*npm: .*hash.*SFUMATO_CIFAR10"):
        load_images("cifar10", "train")


def test_what_was_fetched_once_is_not_fetched_again(monkeypatch):
    monkeypatch.setattr(cifar10, "_from_hub", lambda split, _: decoded(split))
    first = load_images("cifar10", "test")
    monkeypatch.setattr(cifar10, "_from_hub", unexpected)
    second = load_images("cifar10", "test")
    assert np.array_equal(first.images.numpy(), second.images.numpy())
    with pytest.raises(AssertionError):
        load_images("cifar10", "train")


def test_the_folder_named_goes_before_everything(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setenv(cifar10.FOLDER_VARIABLE, str(tmp_path))
    found = cifar10.load("test", lambda place, split: asked.append(place) or decoded(split))
    assert asked == [str(tmp_path)] and found.names == cifar10.NAMES


def test_a_folder_with_other_images_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(cifar10.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match="not the lossless original"):
        cifar10.load("test", lambda _, split: decoded(split, damaged=True))


def test_another_size_is_fitted(monkeypatch):
    monkeypatch.setattr(cifar10, "_from_hub", lambda split, _: decoded(split))
    assert load_images("cifar10", "test", size=(40, 24)).images.shape == (COUNT, 3, 40, 24)


def archive(path, *, members: dict[str, bytes] | None = None):
    """The npm package in small: two sheets to train with, one to test; an image is a row of 1024 pixels."""

    def sheet(images: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(images.transpose(0, 2, 3, 1).reshape(len(images), 1024, 3)).save(stream, format="PNG")
        return stream.getvalue()

    files = members or {
        "package/data_batch_2.png": sheet(IMAGES["train"][4:]),
        "package/data_batch_1.png": sheet(IMAGES["train"][:4]),
        "package/test_batch.png": sheet(IMAGES["test"]),
        "package/train_lables.json": json.dumps(LABELS.tolist()).encode(),
        "package/test_lables.json": json.dumps([LABELS.tolist()]).encode(),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_npm_package_is_read(tmp_path, split):
    found = cifar10.read_npm_archive(archive(tmp_path / "a.tgz"), split)
    assert np.array_equal(found.images, IMAGES[split]) and found.images.dtype == torch.uint8
    assert np.array_equal(found.labels, LABELS) and found.labels.dtype == torch.int64


@pytest.mark.parametrize(
    "members",
    [
        {"package/readme.md": b"nothing"},
        {"package/test_batch.png": b"no image", "package/test_lables.json": b"[1]"},
        {"package/test_lables.json": b"[1]"},
        {"../escaped.png": b"x"},
        {"/escaped.png": b"x"},
    ],
)
def test_another_package_is_refused(tmp_path, members):
    with pytest.raises(DataError, match="not as expected"):
        cifar10.read_npm_archive(archive(tmp_path / "a.tgz", members=members), "test")
    assert [file.name for file in tmp_path.rglob("*")] == ["a.tgz"], "nothing is unpacked"


def test_an_archive_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.tgz").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="not as expected"):
        cifar10.read_npm_archive(tmp_path / "a.tgz", "test")


@pytest.fixture
def npm(monkeypatch, tmp_path):
    """Puts a program called npm on an otherwise empty path."""
    monkeypatch.undo()

    def install(script: str) -> None:
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "npm").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", str(programs))

    return install


def test_the_npm_client_is_told_what_to_fetch(npm, tmp_path):
    made = archive(tmp_path / "made.tgz")
    npm(f'/bin/cp {made} got.tgz; echo "$@" > {tmp_path}/arguments')
    found = cifar10._from_npm("test", unexpected)
    assert np.array_equal(found.images, IMAGES["test"])
    assert found.sha256 == content_sha256(IMAGES["test"], LABELS)
    assert (tmp_path / "arguments").read_text().split() == ["pack", cifar10.NPM_PACKAGE, "--silent"]


@pytest.mark.parametrize(("script", "reason"), [("exit 1", "failed"), ("true", "left 0 archives")])
def test_an_npm_client_that_fails_is_an_error_of_ours(npm, script, reason):
    npm(script)
    with pytest.raises(DataError, match=reason):
        cifar10._from_npm("test", unexpected)


def test_a_machine_without_npm_is_told_so(npm, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="not installed"):
        cifar10._from_npm("test", unexpected)


@pytest.mark.long
@pytest.mark.skipif(FOLDER is None, reason="needs SFUMATO_CIFAR10, a folder with CIFAR-10's parquet files")
@pytest.mark.parametrize(
    ("split", "count", "mean_off", "std_off"),
    [
        ("test", 10_000, 5e-3, 2e-3),
        ("train", 50_000, 2e-4, 2e-3),
    ],
)
def test_the_real_images_are_whole(monkeypatch, own_caches, split, count, mean_off, std_off):
    monkeypatch.undo()
    found = load_images("cifar10", split)
    assert found.images.shape == (count, 3, 32, 32)
    assert found.labels.bincount().tolist() == [count // 10] * 10
    assert found.names == cifar10.NAMES and found.unreadable == 0
    # The constants that classifiers are normalised with are the training images'; the others' are nearly the same.
    values = found.images.transpose(0, 1).reshape(3, -1).double() / 255
    assert values.mean(dim=1).tolist() == pytest.approx(cifar10.MEAN, abs=mean_off)
    assert values.std(dim=1).tolist() == pytest.approx(cifar10.STD, abs=std_off)
