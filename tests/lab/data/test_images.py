import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.device import load_image
from sfumato.device.image import fit
from sfumato.errors import DataError
from sfumato.lab.data import ImageSet, load_images, load_train_test
from sfumato.lab.data import images as loader
from sfumato.lab.data.image_set import class_places
from synthetic import CLASSES, image_set, pixels, png, save_folder

pytestmark = pytest.mark.usefixtures("own_caches")


def save_parquet(folder, *, column: str = "img", label: str = "fine_label", named: bool = True, count: int = 6):
    """`train-0.parquet` and `test-0.parquet` as the hub has them: images as bytes, labels as numbers."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as Image

    folder.mkdir(parents=True, exist_ok=True)
    features = Features({column: Image(), label: ClassLabel(names=list(CLASSES)) if named else Value("int64")})
    for split in ("train", "test"):
        rows = {
            column: [{"bytes": png(p), "path": None} for p in pixels(count, size=(8, 8), seed=len(split))],
            label: [i % 4 for i in range(count)],
        }
        Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}-0.parquet"))
    return folder


def test_a_folder_of_class_folders_is_read(tmp_path):
    folder = save_folder(tmp_path, train=8, test=4)
    for split, count in (("train", 8), ("test", 4)):
        found = load_images(str(folder), split)
        assert found.names == CLASSES
        assert (len(found), found.unreadable, found.source) == (count, 0, str(folder))
        assert found.images.dtype == torch.uint8 and found.labels.dtype == torch.int64
        files = sorted((folder / split).rglob("*.png"))
        for file in files:
            wanted = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)
            (position,) = [i for i, image in enumerate(found.images) if torch.equal(image, wanted)]
            assert found.names[found.labels[position]] == file.parent.name


def test_parquet_files_are_read_in_their_order(tmp_path):
    folder = save_parquet(tmp_path / "parquet")
    found = load_images(str(folder), "train")
    assert torch.equal(found.images, torch.from_numpy(pixels(6, size=(8, 8), seed=5).transpose(0, 3, 1, 2).copy()))
    assert found.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert found.names == CLASSES


def test_labels_without_names_are_called_by_their_number(tmp_path):
    folder = save_parquet(tmp_path / "numbers", named=False)
    found = load_images(str(folder), "test", label_column="fine_label")
    assert found.names == ("0", "1", "2", "3")
    assert found.labels.tolist() == [0, 1, 2, 3, 0, 1]


def test_columns_may_be_named(tmp_path):
    folder = save_parquet(tmp_path / "named", column="photo", label="kind", named=False)
    found = load_images(str(folder), "train", image_column="photo", label_column="kind")
    assert len(found) == 6
    with pytest.raises(DataError, match="no obvious label column among photo, kind"):
        load_images(str(folder), "train")


@pytest.mark.parametrize("columns", [{"image_column": "image"}, {"label_column": "coarse_label"}])
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path, columns):
    folder = save_parquet(tmp_path / "broken")
    with pytest.raises(DataError, match=f"no column {next(iter(columns.values()))!r}; it has img, fine_label"):
        load_images(str(folder), "train", **columns)


def test_a_column_of_the_wrong_kind_is_an_error(tmp_path):
    folder = save_parquet(tmp_path / "swapped")
    with pytest.raises(DataError, match="'fine_label' holds no images"):
        load_images(str(folder), "train", image_column="fine_label")
    with pytest.raises(DataError, match="'img' holds Image, not one class"):
        load_images(str(folder), "train", label_column="img")


def test_images_of_different_sizes_need_a_size(tmp_path):
    folder = save_folder(tmp_path, train=8, test=4)
    (folder / "train" / "apple" / "00.png").write_bytes(png(pixels(1, size=(20, 44))[0]))
    with pytest.raises(DataError, match="differ in size"):
        load_images(str(folder), "train")
    found = load_images(str(folder), "train", size=(16, 24))
    assert found.images.shape == (8, 3, 16, 24)
    # The device would see exactly the same.
    as_on_device = {fit(load_image(f), 16, 24).transpose(2, 0, 1).tobytes() for f in (folder / "train").rglob("*.png")}
    assert {image.numpy().tobytes() for image in found.images} == as_on_device


def test_a_broken_file_costs_one_image_and_is_counted(tmp_path):
    folder = save_folder(tmp_path, train=8, test=4)
    whole = load_images(str(folder), "train")
    (folder / "train" / "banana" / "01.png").write_bytes(b"no image")
    found = load_images(str(folder), "train")
    assert (len(found), found.unreadable) == (7, 1)
    places = [i for i, label in enumerate(whole.labels.tolist()) if CLASSES[label] != "banana"]
    assert torch.equal(found.images[found.labels != 1], whole.images[places]), "labels must stay with their images"
    assert (found.labels == 1).sum() == (whole.labels == 1).sum() - 1


def test_nothing_but_broken_files_is_an_error(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 2 images cannot be read"):
        load_images(str(tmp_path), "train")


def test_the_second_time_nothing_is_decoded(tmp_path, monkeypatch):
    folder = save_folder(tmp_path, train=4, test=4)
    first = load_images(str(folder), "train")
    monkeypatch.setattr(loader, "read_rows", None)
    monkeypatch.setattr(loader, "load_image", None)
    second = load_images(str(folder), "train")
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)
    assert (first.names, first.sha256) == (second.names, second.sha256)


def test_a_changed_file_is_decoded_again(tmp_path):
    folder = save_folder(tmp_path, train=4, test=4)
    first = load_images(str(folder), "train")
    file = folder / "train" / "apple" / "00.png"
    image = pixels(1, seed=55)[0]
    file.write_bytes(png(image))
    os.utime(file, ns=(1, 1))
    second = load_images(str(folder), "train")
    assert second.sha256 != first.sha256
    assert torch.equal(second.images[0], torch.from_numpy(image).permute(2, 0, 1))


def test_another_size_is_another_entry(tmp_path):
    folder = str(save_folder(tmp_path, train=4, test=4))
    shapes = [load_images(folder, "train", size=size).images.shape[2:] for size in (None, (8, 8), (16, 8))]
    assert shapes == [(32, 32), (8, 8), (16, 8)]


def test_a_validation_split_serves_as_test(tmp_path):
    folder = save_folder(tmp_path, train=4, test=4)
    (folder / "test").rename(folder / "validation")
    assert len(load_images(str(folder), "test")) == 4


def test_a_split_that_is_not_there_is_an_error(tmp_path):
    folder = save_folder(tmp_path, train=0, test=4)
    with pytest.raises(DataError, match="no train split; it has test"):
        load_images(str(folder), "train")
    assert len(load_images(str(folder), "test")) == 4


def test_a_lonely_training_split_is_shared_out_and_no_image_is_in_both(tmp_path):
    folder = save_folder(tmp_path, train=16, test=0)
    parts = {split: load_images(str(folder), split) for split in ("train", "test")}
    seen = {split: {image.numpy().tobytes() for image in part.images} for split, part in parts.items()}
    assert (len(seen["train"]), len(seen["test"])) == (12, 4) and not seen["train"] & seen["test"]


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="'dev' is unknown"):
        load_images(str(tmp_path), "dev")


@pytest.mark.parametrize(
    "source", ["./absent", "/absent/folder", "~/absent-folder", "a/b/c", "absent", "absent/", __file__]
)
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(source, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(DataError, match="no data at"):
        load_images(source, "train")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no images in .*: expected a folder with one folder per class"):
        load_images(str(tmp_path), "train")


def test_the_first_images_of_a_set_are_a_set():
    whole = image_set(6)
    part = whole.subset(4)
    assert len(part) == 4 and torch.equal(part.images, whole.images[:4]) and part.names == whole.names
    assert whole.subset(None) is whole and whole.subset(6) is whole and whole.subset(7) is whole


def test_images_without_classes_are_of_one_class_where_that_will_do(tmp_path):
    for index, image in enumerate(pixels(6, size=(8, 8))):
        (tmp_path / f"{index}.png").write_bytes(png(image))
    with pytest.raises(DataError, match="no obvious label column"):
        load_images(str(tmp_path), "train")
    images = load_images(str(tmp_path), "train", unlabelled=True)
    assert images.names == ("image",) and images.labels.tolist() == [0] * 4 and not images.labelled


def test_a_single_split_gives_every_fifth_image_for_testing(tmp_path):
    for index, image in enumerate(pixels(11, size=(8, 8))):
        (tmp_path / f"{index:02d}.png").write_bytes(png(image))
    train, test, _ = load_train_test(str(tmp_path))
    whole = torch.from_numpy(pixels(11, size=(8, 8)).transpose(0, 3, 1, 2).copy())
    assert (len(train), len(test)) == (8, 3)
    assert torch.equal(test.images, whole[::5]) and train.sha256 != test.sha256
    assert torch.equal(load_images(str(tmp_path), "train", unlabelled=True).images, train.images)


def test_both_splits_are_taken_as_they_are_where_there_are_two(tmp_path):
    folder = save_folder(tmp_path, train=8, test=4)
    train, test, _ = load_train_test(str(folder))
    assert (len(train), len(test)) == (8, 4)
    whole = {image.numpy().tobytes() for image in load_images(str(folder), "train").images}
    assert {image.numpy().tobytes() for image in train.images} == whole


def test_a_folder_per_class_comes_mixed_and_the_same_each_time(tmp_path):
    folder = save_folder(tmp_path, train=40, test=20)
    sorted_, (train, test, _) = load_images(str(folder), "train"), load_train_test(str(folder))
    assert sorted_.labels.tolist() == sorted(sorted_.labels.tolist())
    for part in (train, test):
        assert set(part.subset(len(part) // 2).labels.tolist()) == {0, 1, 2, 3}
    assert torch.equal(train.images, load_train_test(str(folder))[0].images)


def test_cifar10_has_no_other_columns():
    with pytest.raises(DataError, match="cifar10 has one column"):
        load_images("cifar10", "test", label_column="colour")


def save_csv(folder, lines: list[str], count: int = 10) -> str:
    for index, image in enumerate(pixels(count, size=(8, 8))):
        (folder / "jpg").mkdir(exist_ok=True)
        (folder / "jpg" / f"{index}.png").write_bytes(png(image))
    file = folder / "list.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def test_a_csv_of_paths_classes_and_splits(tmp_path):
    rows = [f"jpg/{i}.png,{CLASSES[i % 4]},{'test' if i < 3 else 'train'}" for i in range(10)]
    source = save_csv(tmp_path, ["path,label,split", *rows])
    train, test = load_images(source, "train"), load_images(source, "test")
    whole = torch.from_numpy(pixels(10, size=(8, 8)).transpose(0, 3, 1, 2).copy())
    assert torch.equal(test.images, whole[:3]) and torch.equal(train.images, whole[3:])
    assert [train.names[label] for label in train.labels] == [CLASSES[i % 4] for i in range(3, 10)]


def test_a_csv_without_splits_is_shared_out_and_columns_may_be_named(tmp_path):
    rows = [f"{i},jpg/{i}.png,{CLASSES[i % 4]}" for i in range(10)]
    source = save_csv(tmp_path, ["number,where,kind", *rows])
    with pytest.raises(DataError, match=r"has the columns number, where, kind; one with the images' paths"):
        load_images(source, "train")
    found = load_images(source, "test", image_column="where", label_column="kind")
    assert [found.names[label] for label in found.labels] == [CLASSES[0], CLASSES[1]]


def test_a_csv_that_changes_is_read_again(tmp_path):
    rows = [f"jpg/{i}.png,{CLASSES[i % 4]}" for i in range(10)]
    first = load_images(save_csv(tmp_path, ["path,label", *rows]), "train")
    rows[1] = "jpg/1.png,date"
    second = load_images(save_csv(tmp_path, ["path,label", *rows]), "train")
    assert first.names[first.labels[0]] == "banana" and second.names[second.labels[0]] == "date"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["path,label", "a.png"], "row 2 does not have as many fields"),
        (["path,label"], "lists no images"),
        (["jpg/0.png,cat", "jpg/1.png,dog"], "its first line must name the columns"),
    ],
)
def test_a_csv_that_is_none_of_ours_is_an_error(tmp_path, lines, said):
    with pytest.raises(DataError, match=said):
        load_images(save_csv(tmp_path, lines), "train")


@pytest.mark.parametrize("way", ["../secret.png", "jpg/../../secret.png", "absolute", "link/secret.png", "file.png"])
def test_a_csv_reads_nothing_outside_its_folder_unless_that_is_allowed(tmp_path, way):
    """A table from somebody else could otherwise name any image that the user may read."""
    secret, folder = tmp_path / "secret.png", tmp_path / "theirs"
    folder.mkdir()
    secret.write_bytes(png(pixels(1, size=(8, 8))[0]))
    (folder / "link").symlink_to(tmp_path)
    (folder / "file.png").symlink_to(secret)
    way = str(secret) if way == "absolute" else way
    source = save_csv(folder, ["path,label", *(f"jpg/{i}.png,a" for i in range(9)), f"{way},b"])
    for _ in range(2):  # what is in the cache now is for those who allow it
        with pytest.raises(DataError, match=r"row 11 names .*which is outside the file's folder; .*--allow-outside"):
            load_images(source, "train")
        assert load_images(source, "train", allow_outside=True).names == ("a", "b")
    with pytest.raises(DataError, match="outside"):
        load_train_test(source)
    train, test, _ = load_train_test(source, allow_outside=True)
    assert len(train) + len(test) == 10


def test_paths_that_lead_back_into_the_folder_and_a_link_to_it_are_fine(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    source = save_csv(folder, ["path,label", *(f"../data/jpg/{i}.png,a" for i in range(10))])
    (tmp_path / "link").symlink_to(folder)
    assert len(load_images(source, "train")) == len(load_images(str(tmp_path / "link" / "list.csv"), "train")) == 8


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "", "b", " "], r"4 of 8 images have no class in column 'label' \('' for image 2, ' ' for image 4, ''"),
        (["0", "1", "-1", "2"], r"2 of 8 images have .* \('-1' for image 3, '-1' for image 7\)"),
        (["", "", "a", ""], r"6 of 8 images .*'' for image 1, '' for image 2, '' for image 4, \.\.\."),
        (["", "", "", ""], "8 of 8 images"),
    ],
)
def test_images_without_a_class_are_named(tmp_path, labels, said):
    rows = [f"jpg/{i}.png,{labels[i % 4]},train" for i in range(8)]
    source = save_csv(tmp_path, ["path,label,split", *rows, "jpg/8.png,a,test"])
    with pytest.raises(DataError, match=said):
        load_images(source, "train")


def test_minus_one_is_a_class_beside_one_alone(tmp_path):
    rows = [f"jpg/{i}.png,{(-1, 1)[i % 2]},train" for i in range(8)]
    source = save_csv(tmp_path, ["path,label,split", *rows, "jpg/8.png,1,test"])
    assert set(load_images(source, "train").names) == {"-1", "1"}


def test_images_without_any_class_may_be_unlabelled(tmp_path):
    rows = [f"jpg/{i}.png,,train" for i in range(8)]
    source = save_csv(tmp_path, ["path,label,split", *rows, "jpg/8.png,a,test"])
    assert not load_images(source, "train", unlabelled=True).labelled


def test_a_label_that_no_class_has_is_named(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    images = [{"bytes": png(p), "path": None} for p in pixels(4, size=(8, 8))]
    for split, labels in (("train", [0, 1, -1, 0]), ("test", [-1] * 4)):
        table = Dataset.from_dict({"image": images, "label": labels}, features=features)
        table.to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match=r"1 of 4 images have no class in column 'label' \(-1 for image 3\)"):
        load_images(str(tmp_path), "train")
    assert not load_images(str(tmp_path), "test", unlabelled=True).labelled


def test_broken_files_are_named_but_too_many_are_an_error(tmp_path):
    folder = save_folder(tmp_path, train=20, test=4)
    files = sorted((folder / "train").rglob("*.png"))
    for file in files[:4]:
        file.write_bytes(b"no image")
    found = load_images(str(folder), "train")
    (remark,) = found.remarks()
    assert "4 of 20 images cannot be read" in remark and files[0].name in remark and remark.endswith("...)")
    assert load_images(str(folder), "train").broken == found.broken, "the cache knows them too"
    files[5].write_bytes(b"")
    with pytest.raises(DataError, match="5 of 20 images cannot be read, more than 20%"):
        load_images(str(folder), "train")


def test_classes_of_very_different_sizes_are_said():
    labels = torch.tensor([0] * 30 + [1] * 2 + [3] * 12)
    images = ImageSet(torch.zeros(44, 3, 8, 8, dtype=torch.uint8), labels, CLASSES, "here", "hash")
    empty, uneven = images.remarks()
    assert "1 of 4 classes have no images (cherry)" in empty
    assert "from 2 (banana) to 30 (apple) images" in uneven
    assert image_set(8).remarks() == []


def test_the_classes_of_the_data_become_the_classifiers():
    images = image_set(8)  # apple, banana, cherry, date
    labels = ("zebra", "Date", "banana, plantain", "cherry", "crab-apple, apple")
    found = images.of_classes(labels)
    assert found.names == labels and found.labels.tolist() == [4, 2, 3, 1] * 2
    assert torch.equal(found.images, images.images)
    assert images.of_classes(CLASSES) is images


def test_numbers_for_classes_go_by_order_and_other_names_are_refused():
    images = image_set(8)
    found = images.of_classes(("0", "1", "2", "3"))
    assert found.labels.tolist() == images.labels.tolist() and found.names == ("0", "1", "2", "3")
    for labels in (
        ("0", "1", "2"),
        ("apple", "banana", "cherry", "fig"),
        ("date", "apple", "apple", "banana", "cherry"),
    ):
        with pytest.raises(DataError, match="not, or not clearly, among the classifier's"):
            images.of_classes(labels)


def save_people(folder, *, broken: tuple[int, ...] = ()):
    """A table of images with a useful column and a private one, neither of them called a label; CelebA is like it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,smiling,glasses"]
    for index, image in enumerate(pixels(30, size=(8, 8))):
        (folder / f"{index:02d}.png").write_bytes(b"broken" if index in broken else png(image))
        lines.append(f"{index:02d}.png,{index % 2},{('no', 'yes')[index % 3 == 0]}")
    (folder / "people.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "people.csv")


@pytest.mark.parametrize("broken", [(), (4, 10)], ids=["whole", "some broken"])
def test_a_table_with_a_useful_column_and_private_ones(tmp_path, monkeypatch, broken):
    source = save_people(tmp_path / "people", broken=broken)
    if not broken:  # then the images are decoded once, not once more for every column
        monkeypatch.setattr(loader, "_decode", counting(loader._decode, calls := []))
    train, test, extra = load_train_test(source, label_column="smiling", attributes=("glasses", "smiling"))
    assert broken or len(calls) == 2
    assert train.names == ("0", "1")
    for split, place, rows in ((train, 0, [i for i in range(30) if i % 5]), (test, 1, list(range(0, 30, 5)))):
        rows = [row for row in rows if row not in broken]
        assert split.labels.tolist() == [row % 2 for row in rows]
        assert extra["glasses"][place].tolist() == [int(row % 3 == 0) for row in rows]
        assert extra["smiling"][place].tolist() == split.labels.tolist()


def counting(function, calls):
    def counted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return counted


def test_a_column_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="no column 'beard'; it has path, smiling, glasses"):
        load_train_test(save_people(tmp_path / "people"), label_column="smiling", attributes=("beard",))


def save_configured(folder):
    for index, name in enumerate(("small", "160px")):
        save_parquet(folder / name, count=6 + 2 * index)
    said = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in ("train", "test"))
        for name in ("small", "160px")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{said}---\n")
    return folder


def test_a_configuration_is_named_after_a_colon(tmp_path):
    folder = save_configured(tmp_path / "configured")
    assert len(load_images(f"{folder}:small", "train")) == 6
    assert len(load_images(f"{folder}:160px", "train")) == 8
    assert load_images(f"{folder}:160px", "test").source == f"{folder}:160px"
    with pytest.raises(DataError, match=r"has several configurations; give one of .*small"):
        load_images(str(folder), "train")
    with pytest.raises(DataError, match=r"has no configuration '320px'; give one of .*160px"):
        load_images(f"{folder}:320px", "train")


def test_a_configuration_of_a_hub_data_set_is_passed_on(monkeypatch):
    asked = []

    def load_dataset(*where, **options):
        asked.append((where, options))
        raise ValueError("not today")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for source in ("frgfm/imagenette:160px", "frgfm/imagenette"):
        with pytest.raises(DataError, match=f"data set '{source}' cannot be loaded: not today; there is no such"):
            load_images(source, "train", size=(8, 8))
    assert asked == [
        (("frgfm/imagenette", "160px"), {"streaming": False}),
        (("frgfm/imagenette", None), {"streaming": False}),
    ]


def test_among_many_names_a_few_that_are_unclear_do_not_matter_where_the_order_is_the_same():
    names = tuple(f"kind {index}" for index in range(200))
    ours, theirs = (*names[:100], "crane2", *names[101:]), (*names[:50], "crane", *names[51:100], "crane", *names[101:])
    assert class_places(ours, (*names[:100], "crane", *names[101:]), "x") == list(range(200))
    with pytest.raises(DataError, match="not clearly"):
        class_places(("crane2", *names[:99], *names[100:]), (*names[:99], "crane", *names[100:]), "x")
    with pytest.raises(DataError, match="not clearly"):
        class_places(tuple(f"sort {i}" for i in range(3)) + names[3:], theirs, "x")


def test_columns_of_labels_are_read_for_each_class(tmp_path):
    rows = [f"jpg/{i}.png,{i % 2},x,{i // 5}" for i in range(10)]
    source = save_csv(tmp_path, ["path,glasses,kind,hat", *rows])
    for _ in ("decoded", "cached"):
        found = load_images(source, "train", label_columns=("hat", "glasses"))
        numbers = [i for i in range(10) if i % 5]
        assert found.multi_label and found.names == ("hat", "glasses")
        assert found.labels.tolist() == [[i // 5, i % 2] for i in numbers] and found.labels.dtype == torch.int64
    assert not load_images(source, "train", label_column="kind").multi_label, "the cache keeps them apart"
    turned = found.of_classes(("Glasses", "hat"))
    assert turned.labels.tolist() == [[i % 2, i // 5] for i in numbers] and turned.names == ("Glasses", "hat")
    with pytest.raises(DataError, match=r"classes have no column of labels .beard"):
        found.of_classes(("glasses", "hat", "beard"))
    images, labels = next(found.batches(0, 4))
    assert images.shape[0] == 4 and labels.shape == (4, 2)
    assert found.subset(2).labels.tolist() == [[0, 1], [0, 0]]
    assert replace(found, labels=torch.zeros_like(found.labels)).remarks() == [
        f"{source}: 2 of 2 classes have no images (hat, glasses)"
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [("0 1 1 0", [0, 1, 1, 0]), ("-1 1 1 -1", [0, 1, 1, 0]), ("False true True 0", [0, 1, 1, 0]), ("1 1 1 1", [1] * 4)],
)
def test_labels_may_be_written_in_the_usual_ways(tmp_path, values, expected):
    lines = [f"jpg/{i}.png,{value},{value},train" for i, value in enumerate(values.split())]
    source = save_csv(tmp_path, ["path,a,b,split", *lines, "jpg/5.png,1,1,test"])
    assert load_images(source, "train", label_columns=("a", "b")).labels.tolist() == [[value] * 2 for value in expected]


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        (["1,0"] * 10, ("a", "c"), "no column 'c'"),
        (["1,0", "2,0"] * 5, ("a", "b"), "column 'a' holds '2'"),
        (["1,"] * 10, ("a", "b"), "column 'b' holds ''"),
        (["1,0", "-1,1"] * 5, ("a", "b"), "column 'a' holds '-1'"),  # it might mean "not known" beside 0
    ],
)
def test_what_is_no_label_is_an_error(tmp_path, rows, columns, said):
    source = save_csv(tmp_path, ["path,a,b", *(f"jpg/{i}.png,{row}" for i, row in enumerate(rows))])
    with pytest.raises(DataError, match=said):
        load_images(source, "train", label_columns=columns)


def test_data_of_one_class_per_image_have_no_columns_of_labels():
    with pytest.raises(DataError, match="one class per image"):
        load_images("cifar10", "train", label_columns=("cat", "dog"))
