"""Read data sets as tables of images and classes: hub ids, parquet, class folders, IDX and CSV files."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.errors import DataError
from sfumato.lab.data.idx import is_idx_folder, read_splits
from sfumato.lab.data.image_set import SHOWN, UNLABELLED
from sfumato.lab.libraries import first_line

SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "validation", "valid", "val"),
}
HOLD_OUT_EVERY = 5
"""Of a data set that has training images only, one image in so many is held out for testing."""
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "img")
_SPLIT_COLUMN = "split"
_YES_NO: tuple[dict[str, int], ...] = ({"0": 0, "1": 1, "false": 0, "true": 1}, {"-1": 0, "1": 1})
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_EXPECTED = (
    "a folder with one folder per class, parquet files or IDX files, a .csv file, or a hub id such as owner/name"
)
_CONFIGURED = re.compile(r"(?P<place>.*[^:\\/]):(?P<config>[A-Za-z0-9][\w.+-]*)")


def read_rows(source: str, split: str, image_column: str | None = None, *, allow_outside: bool = False) -> Any:
    """Return the rows of one split, with images not decoded yet.

    Where there is only a training split, every fifth of its rows belongs to the test split instead. The column is that
    with the paths in a CSV file, found by its name if None; the rest is as in `load_images`.

    Raises:
        DataError: it cannot be found or read, or has no such split.
    """
    folder = Path(source).expanduser()
    if source.endswith(".csv"):
        splits = _read_csv(folder, image_column, allow_outside=allow_outside)
    else:
        splits = read_splits(folder) if is_idx_folder(folder) else _load_with_datasets(source)
    train_only = set(splits) <= set(SPLIT_NAMES["train"])
    name = next((name for name in SPLIT_NAMES["train" if train_only else split] if name in splits), None)
    if name is None:
        raise DataError(f"{source} has no {split} split; it has {', '.join(splits)}")
    rows = splits[name]
    if not train_only:
        return rows
    if len(rows) < 2:
        raise DataError("one image cannot be split into training and test images; at least 2 are needed")
    return rows.select([place for place in range(len(rows)) if (place % HOLD_OUT_EVERY == 0) == (split == "test")])


def read_streams(source: str) -> Mapping[str, Any]:
    """Return all splits by name as `IterableDataset`s, of which nothing but a head has been read yet.

    Raises:
        DataError: it cannot be found or read, or is of a kind that cannot be streamed.
    """
    if source.endswith(".csv") or is_idx_folder(Path(source).expanduser()):
        raise DataError(
            f"{source} cannot be streamed: parquet files, class folders and hub ids can; leave out data.stream"
        )
    return _load_with_datasets(source, streaming=True)


def located(source: str) -> tuple[Path | str, str | None]:
    """Return where a data set is, a local path or a hub id, and the configuration that its source names."""
    config = None
    if not Path(source).expanduser().exists() and (parts := _CONFIGURED.fullmatch(source)):
        source, config = parts["place"], parts["config"]
    path = Path(source).expanduser()
    return (path if path.exists() else source), config


def _load_with_datasets(source: str, *, streaming: bool = False) -> Mapping[str, Any]:
    from datasets import disable_progress_bars, load_dataset

    place, config = located(source)
    if place.is_file() if isinstance(place, Path) else not _HUB_ID.fullmatch(place):
        raise DataError(f"no data at {place}: expected {_EXPECTED}")
    disable_progress_bars()
    try:
        splits: Mapping[str, Any] = load_dataset(str(place), config, streaming=streaming)
    except (OSError, RuntimeError, ValueError) as error:
        listed = re.search(r"\[[^]]*", str(error)) if "config" in str(error).lower() else None
        if listed and (known := re.findall(r"'([^']+)'", listed[0])):
            fault = f"has no configuration {config!r}" if config else "has several configurations"
            raise DataError(
                f"data set {str(place)!r} {fault}; give one of {', '.join(known)} after a colon, such as "
                f"{place}:{known[0]}"
            ) from error
        if isinstance(place, Path) and isinstance(error, FileNotFoundError):
            raise DataError(f"no images in {place}: expected {_EXPECTED}") from error
        absent = "" if isinstance(place, Path) else "; there is no such folder either"
        raise DataError(f"data set {source!r} cannot be loaded: {first_line(error)}{absent}") from error
    return splits


def _read_csv(file: Path, path_column: str | None, *, allow_outside: bool) -> Mapping[str, Any]:
    """Return splits by name, from a file whose first line names its columns; paths are relative to its folder."""
    from datasets import Dataset, Features, Image, Value

    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            lines = list(reader)
            columns = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from error
    column = path_column or next((name for name in _PATH_COLUMNS if name in columns), None)
    if column is None or column not in columns:
        raise DataError(
            f"{file} has the columns {', '.join(columns) or 'none'}; one with the images' paths is needed, called "
            f"{path_column or ', '.join(_PATH_COLUMNS)}, and its first line must name the columns"
        )
    short = next((place for place, line in enumerate(lines) if None in line or None in line.values()), None)
    if short is not None:
        raise DataError(f"{file}: row {short + 2} does not have as many fields as the first line")
    if not lines:
        raise DataError(f"{file} lists no images")
    features = Features({name: Value("string") for name in columns if name != _SPLIT_COLUMN})
    features[column] = Image(decode=False)
    splits: dict[str, list[dict[str, object]]] = {}
    for place, line in enumerate(lines):
        if not allow_outside:
            _check_inside(file, place, line[column])
        rows = splits.setdefault(line.pop(_SPLIT_COLUMN, "train"), [])
        rows.append({**line, column: {"path": str(file.parent / line[column]), "bytes": None}})
    return {name: Dataset.from_list(rows, features=features) for name, rows in splits.items()}


def _check_inside(file: Path, place: int, path: str) -> None:
    try:
        inside = (file.parent / path).resolve().is_relative_to(file.parent.resolve())
    except (OSError, RuntimeError, ValueError):  # a name that no file can have: it is counted as unreadable
        return
    if not inside:
        raise DataError(
            f"{file}: row {place + 2} names {path!r:.120}, which is outside the file's folder; if you trust the file, "
            "--allow-outside (data.allow_outside in a recipe) reads it"
        )


def find_columns(
    rows: Any, source: str, image: str | None, label: str | None, *, unlabelled: bool = False
) -> tuple[str, str | None]:
    """Return the column with the images and the one with the classes, found by type or name where they are None.

    With `unlabelled`, the second may be None.

    Raises:
        DataError: there is no such column, or not exactly one candidate.
    """
    from datasets import ClassLabel, Image

    if image is None:
        found = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
        if len(found) != 1:
            raise DataError(
                f"{source} has {len(found)} image columns ({', '.join(found) or 'none'}); name one with image_column"
            )
        image = str(found[0])
    if label is None:
        found = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)]
        if len(found) != 1:
            found = [name for name in _LABEL_COLUMNS if name in rows.column_names]
        if not found and not unlabelled:
            raise DataError(
                f"{source} has no obvious label column among {', '.join(rows.column_names)}; name label_column, or "
                "sort the images into one folder per class"
            )
        label = next(iter(found), None)
    for column in (image, label):
        if column is not None and column not in rows.column_names:
            raise DataError(f"{source} has no column {column!r}; it has {', '.join(rows.column_names)}")
    return image, label


def undecoded(rows: Any, source: str, image: str, *others: str) -> Any:
    """Return rows with these columns alone, images as bytes: one broken file then costs one image, not the run.

    Raises:
        DataError: the first column holds no images.
    """
    from datasets import Image

    try:
        return rows.select_columns([image, *others]).cast_column(image, Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise DataError(f"{source}: column {image!r} holds no images: {first_line(error)}") from error


def read_labels(
    rows: Any, column: str | None, source: str, *, unlabelled: bool
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the names of the classes, and the class of each row, (N,) int64; with `unlabelled`, rows need have none.

    Raises:
        DataError: the column does not hold one class per image.
    """
    from datasets import ClassLabel, Value

    if column is None or (unlabelled and None in rows[column]):
        return UNLABELLED, np.zeros(len(rows), np.int64)
    feature, values = rows.features[column], rows[column]
    if not isinstance(feature, ClassLabel | Value):
        raise DataError(f"{source}: column {column!r} holds {type(feature).__name__}, not one class per image")
    missing = _without_class(values, number=isinstance(feature, ClassLabel))
    if unlabelled and (None in values or len(missing) == len(values)):
        return UNLABELLED, np.zeros(len(rows), np.int64)
    if missing:
        shown = ", ".join(f"{values[place]!r} for image {place + 1}" for place in missing[:SHOWN])
        raise DataError(
            f"{source}: {len(missing)} of {len(values)} images have no class in column {column!r} ({shown}"
            f"{', ...' if len(missing) > SHOWN else ''}); give each one, or leave them out"
        )
    if isinstance(feature, ClassLabel):
        labels = np.asarray(values, dtype=np.int64)
        if labels.size and labels.max() >= len(feature.names):
            raise DataError(
                f"{source}: column {column!r} has the label {labels.max()} for image {int(labels.argmax()) + 1}, but "
                f"{len(feature.names)} classes"
            )
        return tuple(feature.names), labels
    names = sorted({str(v) for v in values}, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0, v))
    index = {name: i for i, name in enumerate(names)}
    return tuple(names), np.asarray([index[str(v)] for v in values], dtype=np.int64)


def read_label_columns(rows: Any, columns: Sequence[str], source: str) -> npt.NDArray[np.int64]:
    """Return which classes each row has: one column for each, of 0 and 1, or of -1 and 1 -> (N, columns) int64, 0 or 1.

    Raises:
        DataError: there is no such column, or it holds something else.
    """
    missing = [name for name in columns if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{source} has no column {', '.join(map(repr, missing[:SHOWN]))}{', ...' if len(missing) > SHOWN else ''}; "
            "multi-label data need a column of 0 and 1 for each class, called like the class; it has "
            f"{', '.join(rows.column_names)}"
        )
    found = [[str(value).strip().lower() for value in rows[name]] for name in columns]
    known = next((known for known in _YES_NO if all(value in known for column in found for value in column)), None)
    if known is None:
        place = next(place for place, column in enumerate(found) if not set(column) <= _YES_NO[0].keys())
        value = next(value for value in found[place] if value not in _YES_NO[0])
        raise DataError(
            f"{source}: column {columns[place]!r} holds {value!r:.60}; those of multi-label data hold 0 and 1, or all "
            "of them -1 and 1"
        )
    return np.array([[known[value] for value in column] for column in found], dtype=np.int64).T


def _without_class(values: list[Any], *, number: bool) -> list[int]:
    """Return the places of values that mean "no class": None, empty texts, and -1.

    Where -1 stands beside 1 alone, it is a class as any other: attributes are written so.
    """
    plain = {str(value).strip() for value in values if value is not None}
    minus = {"-1"} if number or not plain <= {"-1", "1"} else set()
    return [place for place, value in enumerate(values) if value is None or str(value).strip() in {"", *minus}]
