"""IDX files written by hand, from the format's description."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import DataError
from sfumato.lab.data import load_images

pytestmark = pytest.mark.usefixtures("own_caches")
FASHION = Path("/usr/share/datasets/fashion-mnist")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def digits(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 20), dtype=np.uint8)


def save(folder, *, packed: bool, train: int = 6, test: int = 4, dot: str = "-"):
    folder.mkdir(exist_ok=True)
    for name, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) * 3 % 10).astype(np.uint8)
        for kind, array in ((f"images{dot}idx3", digits(count, len(name))), (f"labels{dot}idx1", labels)):
            data = idx(array)
            file = folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize(("packed", "dot"), [(True, "-"), (False, "-"), (False, ".")])
def test_grey_images_become_rgb_pixel_by_pixel(tmp_path, packed, dot):
    folder = save(tmp_path, packed=packed, dot=dot)
    for split, seed, count in (("train", 5, 6), ("test", 4, 4)):
        found = load_images(str(folder), split)
        wanted = torch.from_numpy(digits(count, seed))[:, None].expand(-1, 3, -1, -1)
        assert torch.equal(found.images, wanted)
        assert found.labels.tolist() == [0, 3, 6, 9, 2, 5][:count]
        assert found.names == tuple("0123456789")


def test_images_are_fitted_as_all_others(tmp_path):
    found = load_images(str(save(tmp_path, packed=True)), "test", size=(10, 10))
    (grey, *_) = digits(1, 4)
    by_hand = Image.fromarray(grey).convert("RGB").resize((10, 10), Image.Resampling.BILINEAR, box=(0, 4, 20, 24))
    assert np.array_equal(found.images[0].permute(1, 2, 0).numpy(), np.asarray(by_hand))


def test_more_classes_than_ten_are_numbered(tmp_path):
    folder = save(tmp_path, packed=False)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([1, 2, 3, 46], np.uint8)))
    assert load_images(str(folder), "train").names == load_images(str(folder), "test").names
    assert len(load_images(str(folder), "train").names) == 47


def test_without_test_files_every_fifth_image_is_held_out(tmp_path):
    folder = save(tmp_path, packed=False)
    for file in folder.glob("t10k*"):
        file.unlink()
    assert (len(load_images(str(folder), "train")), len(load_images(str(folder), "test"))) == (4, 2)


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("train-images-idx3-ubyte", lambda data: b"\0\0\r\3" + data[4:], r"begins with 00000d03, expected 00000803"),
        ("train-images-idx3-ubyte", lambda data: data[:-1], r"6 x 28 x 20 = 3360 bytes, but 3359 follow"),
        ("train-images-idx3-ubyte", lambda data: data[:9], "ends within its head"),
        ("train-images-idx3-ubyte", lambda data: b"", "begins with nothing"),
        ("train-labels-idx1-ubyte", lambda data: idx(np.zeros(5, np.uint8)), "6 images and 5 labels"),
    ],
)
def test_what_is_malformed_is_refused(tmp_path, name, damage, complaint):
    file = save(tmp_path, packed=False) / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=complaint):
        load_images(str(tmp_path), "train")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"no gzip", lambda data: data[:30] + b"x" * 99]
)
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    file = save(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match="truncated or damaged"):
        load_images(str(tmp_path), "train")


def test_half_of_a_pair_is_refused(tmp_path):
    (save(tmp_path, packed=False) / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="only one of train-images and train-labels is present"):
        load_images(str(tmp_path), "test")


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_has_its_names():
    found = load_images(str(FASHION), "test")
    assert found.images.shape == (10_000, 3, 28, 28)
    assert (found.names[0], found.names[9]) == ("T-shirt/top", "Ankle boot")
    assert found.labels[:5].tolist() == [9, 2, 1, 1, 6]
