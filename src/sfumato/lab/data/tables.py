"""Read data sets as tables of images and classes: hub ids, parquet, class folders, IDX and CSV files."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.errors import DataError
from sfumato.lab.data.idx import is_idx_folder, read_splits
from sfumato.lab.data.image_set import UNLABELLED
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
_CONFIGURED = re.compile(r"(?P<place>.*[^:\\/]):(?P<config>[A-Za-z0-9][\w.+-]*)")


def read_rows(source: str, split: str, image_column: str | None = None) -> Any:
    """Return the rows of one split, with images not decoded yet.

    Where there is only a training split, every fifth of its rows belongs to the test split instead.

    Args:
        source: a folder, a `.csv` file, or a hub id, with `:` and the name of a configuration where it has several.
        split: "train" or "test".
        image_column: of a CSV file, the column with the paths; found by its name if None.

    Raises:
        DataError: it cannot be found or read, or has no such split.
    """
    folder = Path(source).expanduser()
    if source.endswith(".csv"):
        splits = _read_csv(folder, image_column)
    else:
        splits = read_splits(folder) if is_idx_folder(folder) else load_with_datasets(source)
    train_only = set(splits) <= set(SPLIT_NAMES["train"])
    for name in SPLIT_NAMES["train" if train_only else split]:
        if name in splits:
            return _held_out(splits[name], split) if train_only else splits[name]
    raise DataError(f"{source} has no {split} split; it has {', '.join(splits)}")


def read_streams(source: str) -> Any:
    """Return all splits by name as `IterableDataset`s, of which nothing but a head has been read yet.

    Raises:
        DataError: it cannot be found or read, or is of a kind that cannot be streamed.
    """
    if source.endswith(".csv") or is_idx_folder(Path(source).expanduser()):
        raise DataError(
            f"{source} cannot be streamed: parquet files, class folders and hub ids can; leave out data.stream"
        )
    return load_with_datasets(source, streaming=True)


def _held_out(rows: Any, split: str) -> Any:
    if len(rows) < 2:
        raise DataError("one image cannot be split into training and test images; at least 2 are needed")
    return rows.select([place for place in range(len(rows)) if (place % HOLD_OUT_EVERY == 0) == (split == "test")])


def located(source: str) -> tuple[Path | str, str | None]:
    """Return where a data set is, a local path or a hub id, and the configuration that its source names."""
    config = None
    if not Path(source).expanduser().exists() and (parts := _CONFIGURED.fullmatch(source)):
        source, config = parts["place"], parts["config"]
    path = Path(source).expanduser()
    return (path if path.exists() else source), config


def load_with_datasets(source: str, *, streaming: bool = False) -> Any:
    """Return all splits by name, as the `datasets` library reads them; with `streaming`, nothing is read yet.

    Raises:
        DataError: there is no such data set or configuration, or it cannot be read.
    """
    from datasets import disable_progress_bars, load_dataset

    place, config = located(source)
    if isinstance(place, str) and ("\\" in place or place.startswith((".", "/", "~")) or place.count("/") > 1):
        raise DataError(
            f"no data at {place}: a folder with parquet files, IDX files or one folder per class, or a .csv file, is "
            "expected"
        )
    disable_progress_bars()
    try:
        return load_dataset(str(place), config, streaming=streaming)
    except (OSError, RuntimeError, ValueError) as error:
        known = _configurations(str(error))
        if known:
            fault = f"has no configuration {config!r}" if config else "has several configurations"
            raise DataError(
                f"data set {str(place)!r} {fault}; give one of {', '.join(known)} after a colon, such as "
                f"{place}:{known[0]}"
            ) from error
        raise DataError(f"data set {source!r} cannot be loaded: {first_line(error)}") from error


def _configurations(message: str) -> list[str]:
    """Return the configurations that an error of `datasets` lists."""
    if "config" not in message.lower() or "[" not in message:
        return []
    return re.findall(r"'([^']+)'", message[message.index("[") : message.find("]") + 1 or None])


def _read_csv(file: Path, path_column: str | None) -> dict[str, Any]:
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
    others = [name for name in columns if name not in (column, _SPLIT_COLUMN)]
    features = Features({column: Image(decode=False), **{name: Value("string") for name in others}})
    splits: dict[str, Any] = {}
    for name in dict.fromkeys(line.get(_SPLIT_COLUMN, "train") for line in lines):
        chosen = [line for line in lines if line.get(_SPLIT_COLUMN, "train") == name]
        table: dict[str, list[Any]] = {
            column: [{"path": str(file.parent / line[column]), "bytes": None} for line in chosen]
        }
        table |= {other: [line[other] for line in chosen] for other in others}
        splits[name] = Dataset.from_dict(table, features=features)
    return splits


def find_image_column(rows: Any, source: str) -> str:
    """Return the column with the images.

    Raises:
        DataError: there is not exactly one.
    """
    from datasets import Image

    found = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    if len(found) != 1:
        raise DataError(
            f"{source} has {len(found)} image columns ({', '.join(found) or 'none'}); name one with image_column"
        )
    return str(found[0])


def find_label_column(rows: Any, source: str, *, unlabelled: bool) -> str | None:
    """Return the column with the classes; None if there is none and none is needed.

    Raises:
        DataError: there is not exactly one candidate.
    """
    from datasets import ClassLabel

    found = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    if len(found) != 1:
        found = [name for name in _LABEL_COLUMNS if name in rows.column_names][:1]
    if not found and unlabelled:
        return None
    if len(found) != 1:
        raise DataError(
            f"{source} has no obvious label column among {', '.join(rows.column_names)}; name label_column, or sort "
            "the images into one folder per class"
        )
    return str(found[0])


def read_labels(
    rows: Any, column: str | None, source: str, *, unlabelled: bool
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the names of the classes, and the class of each row, (N,) int64.

    Args:
        rows: of one split.
        column: with the classes; None if there is none.
        source: for messages.
        unlabelled: accept images without classes.

    Raises:
        DataError: the column does not hold one class per image.
    """
    from datasets import ClassLabel, Value

    if column is None or (unlabelled and None in rows[column]):
        return UNLABELLED, np.zeros(len(rows), np.int64)
    if None in rows[column]:
        raise DataError(f"{source}: some images have no class in column {column!r}; give each one, or leave them out")
    feature = rows.features[column]
    if not isinstance(feature, ClassLabel | Value):
        raise DataError(f"{source}: column {column!r} holds {type(feature).__name__}, not one class per image")
    values = rows[column]
    if isinstance(feature, ClassLabel):
        labels = np.asarray(values, dtype=np.int64)
        if labels.size and (labels.min() < 0 or labels.max() >= len(feature.names)):
            raise DataError(f"{source}: column {column!r} has labels outside its {len(feature.names)} classes")
        return tuple(feature.names), labels
    names = sorted({str(v) for v in values}, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0, v))
    index = {name: i for i, name in enumerate(names)}
    return tuple(names), np.asarray([index[str(v)] for v in values], dtype=np.int64)
