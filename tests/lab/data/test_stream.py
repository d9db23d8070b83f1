"""Streams of generated parquet files, compared with the same files read at once."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import DataError
from sfumato.lab.data import load_images, load_stream, stream
from synthetic import CLASSES, pixels, png, save_folder

pytestmark = pytest.mark.usefixtures("own_caches")
SIZE = (8, 8)
IMAGES = 1000


def save_shards(
    folder, *, train: int = 40, test: int = 12, shards: int = 4, split: str = "test", labels=None, broken=()
):
    """Parquet files with different images each, in row groups of five."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    folder.mkdir(parents=True, exist_ok=True)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(CLASSES))})
    for name, count in (("train", train), (split, test)):
        shown = pixels(count, size=SIZE, seed=len(name))
        rows = [{"bytes": b"no image" if i in broken else png(p), "path": None} for i, p in enumerate(shown)]
        classes = labels(count) if labels and name == "test" else [i % 4 for i in range(count)]
        for shard, places in enumerate(np.array_split(np.arange(count), shards)):
            part = {"image": [rows[i] for i in places], "label": [classes[i] for i in places]}
            file = folder / f"{name}-{shard:05d}-of-{shards:05d}.parquet"
            Dataset.from_dict(part, features=features).to_parquet(str(file), batch_size=5)
    return folder


def opened(folder, **changes):
    return load_stream(str(folder), SIZE, **{"train_images": 40, "test_images": 12, **changes})


def seen(batches):
    return [(x.numpy().tobytes(), tuple(labels.tolist())) for x, labels in batches]


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", 10)
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s after each epoch otherwise


def test_an_epoch_has_every_image_once_with_its_class(tmp_path):
    folder = save_shards(tmp_path / "s")
    train, test = opened(folder)
    whole = load_images(str(folder), "train")
    known = {x.numpy().tobytes(): label for x, label in zip(whole.images, whole.labels.tolist(), strict=True)}
    got = [
        (x.numpy().tobytes(), label)
        for images, labels in train.batches(3, 8)
        for x, label in zip(images, labels.tolist(), strict=True)
    ]
    assert len(got) == len(train) == 40 and dict(got) == known
    assert [x for x, _ in got] != list(known), "shuffled"
    assert test.images.shape == (12, 3, *SIZE) and train.names == test.names == CLASSES
    assert sorted(test.labels.tolist()) == sorted(i % 4 for i in range(12))


def test_the_order_depends_on_the_seed_alone_and_goes_on_anywhere(tmp_path, monkeypatch):
    train, _ = opened(save_shards(tmp_path / "s"))
    whole = seen(train.batches(3, 8))
    assert seen(train.batches(4, 8)) != whole
    assert whole[2:] == seen(train.batches(3, 8, first=2))
    again, _ = opened(tmp_path / "s")
    for workers in (0, 2):
        monkeypatch.setattr(stream, "_workers", lambda _, workers=workers: workers)
        assert seen(again.batches(3, 8)) == whole


def test_processes_share_a_batch(tmp_path):
    train, _ = opened(save_shards(tmp_path / "s"))
    both = [list(train.batches(3, 8, rank=rank, world_size=2)) for rank in range(2)]
    for (x, labels), (even, _), (odd, classes) in zip(train.batches(3, 8), *both, strict=True):
        assert torch.equal(x[::2], even) and torch.equal(x[1::2], odd) and torch.equal(labels[1::2], classes)


def test_classes_go_by_name_as_in_memory(tmp_path):
    train, _ = opened(save_shards(tmp_path / "s"))
    turned = train.of_classes(CLASSES[::-1])
    for (_, labels), (_, places) in zip(train.batches(1, 8), turned.batches(1, 8), strict=True):
        assert torch.equal(places, 3 - labels)
    assert torch.equal(turned.sample.labels, 3 - train.sample.labels)
    with pytest.raises(DataError, match="not clearly"):
        train.of_classes(("pear", *CLASSES[1:], "plum"))


def test_folders_of_images_are_streamed_too(tmp_path, monkeypatch):
    train, test = load_stream(str(save_folder(tmp_path)), (16, 16), train_images=16, test_images=8)
    assert train.names == CLASSES and len(test) == 8
    classes = [label for _, labels in train.batches(0, 4) for label in labels.tolist()]
    assert sorted(classes) == [i // 4 for i in range(16)]
    assert set(classes[:8]) != {0, 1} and classes != sorted(classes), "class folders come class by class"
    monkeypatch.setattr(stream, "BUFFER", 1)
    assert [label for _, labels in train.batches(0, 4) for label in labels.tolist()] == classes


def test_a_test_split_without_classes_is_passed_over_for_validation(tmp_path):
    folder = save_shards(tmp_path / "s", labels=lambda count: [-1] * count)
    with pytest.raises(DataError, match="test images have no classes"):
        opened(folder)
    save_shards(folder, split="validation")
    assert len(opened(folder)[1]) == 12


def test_a_broken_image_is_replaced_and_counted(tmp_path):
    folder = save_shards(tmp_path / "s", broken={3, 17})
    train, test = opened(folder)
    sizes = [(len(x), len(labels)) for x, labels in train.batches(3, 8)]
    assert sizes == [(8, 8)] * 5
    assert (train.unreadable, train.sample.unreadable, test.unreadable) == (2, 2, 1)
    assert "2 of 40 images cannot be read" in " ".join(train.remarks())


def test_data_of_broken_images_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"40 of 40 training images cannot be read \(.*not an image"):
        opened(save_shards(tmp_path / "s", broken=range(40)))


def test_more_images_than_there_are_is_an_error(tmp_path):
    train, _ = opened(save_shards(tmp_path / "s"), train_images=50)
    with pytest.raises(DataError, match=r"fewer training images \(40\) than an epoch \(50\)"):
        list(train.batches(0, 10))


def test_what_cannot_be_streamed_is_said(tmp_path):
    from datasets import Dataset

    folder = save_shards(tmp_path / "s")
    with pytest.raises(DataError, match="does not say how many training images"):
        opened(folder, train_images=None)
    with pytest.raises(DataError, match="no column 'kind'; it has image, label"):
        opened(folder, label_column="kind")
    Dataset.from_dict({"image": [{"bytes": png(pixels(1)[0]), "path": None}], "label": ["pear"]}).to_parquet(
        str(tmp_path / "n" / "train-0.parquet") if (tmp_path / "n").mkdir() is None else ""
    )
    with pytest.raises(DataError, match="has the splits train; a stream needs"):
        opened(tmp_path / "n")
    (tmp_path / "t.csv").write_text("path,label\na.png,pear\n")
    with pytest.raises(DataError, match="cannot be streamed"):
        opened(tmp_path / "t.csv")


def test_numbers_for_classes_are_refused(tmp_path):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": Value("int64")})
    rows = {"image": [{"bytes": png(pixels(1)[0]), "path": None}], "label": [0]}
    for split in ("train", "test"):
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{split}-0.parquet"))
    with pytest.raises(DataError, match="no names of classes"):
        opened(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from /proc")
def test_a_stream_is_never_all_in_memory(tmp_path, monkeypatch):
    """The images are 150 MB when decoded; what an epoch adds to this process is far less."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    for split, count in (("train", IMAGES), ("test", 2)):
        files = []
        for index in range(count):
            file = io.BytesIO()
            Image.new("RGB", (224, 224), (index % 256, 40, 90)).save(file, "JPEG")
            files.append({"bytes": file.getvalue(), "path": None})
        rows = {"image": files, "label": [i % 2 for i in range(count)]}
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{split}-0.parquet"), batch_size=20)
    monkeypatch.setattr(stream, "SAMPLE", 8)
    train, _ = load_stream(str(tmp_path), (224, 224), train_images=IMAGES, test_images=2)
    sizes = []
    for x, _ in train.batches(0, 10):
        assert x.shape == (10, 3, 224, 224)
        sizes.append(_resident_mb())
    assert len(sizes) == 100
    assert sizes[-1] - sizes[50] < 40, "the second half alone is 75 MB"


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
