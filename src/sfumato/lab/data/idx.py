"""Read IDX files, the format of MNIST and its relatives: a magic number, the dimensions, then the plain bytes.

Source: LeCun et al., "The MNIST database of handwritten digits", section "File formats".
"""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.errors import DataError

_FILE = re.compile(r"(train|t10k)-(images|labels)[.-]idx([13])-ubyte(\.gz)?")
_SPLITS = {"train": "train", "t10k": "test"}
_UNSIGNED_BYTES = 0x08
_FEWEST_CLASSES = 10

_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# SHA-256 of all pixels: MNIST's other relatives have files of the same names, sizes and label counts.
_FASHION_SHA256 = {
    "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",  # train
    "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",  # t10k
}


def is_idx_folder(folder: Path) -> bool:
    """Return whether a folder holds IDX files under their usual names, such as `train-images-idx3-ubyte.gz`."""
    return folder.is_dir() and any(_FILE.fullmatch(file.name) for file in folder.iterdir())


def read_splits(folder: Path) -> Mapping[str, Any]:
    """Return the splits of a folder as tables of images and classes: "train" and, if there are `t10k-...`, "test".

    The classes have their names where the images are those of Fashion-MNIST to the last byte; else they are numbers.

    Raises:
        DataError: a file is missing, truncated or no IDX file, or the files do not belong together.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()):
        if name := _FILE.fullmatch(file.name):
            found.setdefault(name[1], {}).setdefault(name[2], file)
    splits = {}
    for split, files in sorted(found.items()):
        if len(files) != 2:
            raise DataError(f"{folder}: only one of {split}-images and {split}-labels is present; both are needed")
        splits[split] = _read(files["images"], 3), _read(files["labels"], 1)
        count, labels = (len(array) for array in splits[split])
        if count != labels or not count:
            raise DataError(f"{folder}: {split} has {count} images and {labels} labels; equally many are expected")
    fashion = all(hashlib.sha256(images.tobytes()).hexdigest() in _FASHION_SHA256 for images, _ in splits.values())
    classes = max(_FEWEST_CLASSES, *(int(labels.max()) + 1 for _, labels in splits.values()))
    names = _FASHION if fashion else tuple(map(str, range(classes)))
    return {_SPLITS[split]: _table(*arrays, names) for split, arrays in splits.items()}


def _read(file: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Return the bytes of a file, which must have so many dimensions."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read, it is truncated or damaged: {error}") from error
    magic = bytes((0, 0, _UNSIGNED_BYTES, dimensions))
    head = 4 + 4 * dimensions
    if data[:4] != magic:
        raise DataError(
            f"{file} begins with {data[:4].hex() or 'nothing'}, expected {magic.hex()}: an IDX file of bytes in "
            f"{dimensions} dimensions"
        )
    if len(data) < head:
        raise DataError(f"{file} ends within its header; it is truncated")
    shape = struct.unpack(f">{dimensions}I", data[4:head])
    expected = int(np.prod(shape, dtype=object))
    if len(data) - head != expected:
        raise DataError(
            f"{file} says that it holds {' x '.join(map(str, shape))} = {expected} bytes, but {len(data) - head} follow"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _table(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], names: tuple[str, ...]) -> Any:
    """Return a table like those of the hub; each image becomes a PGM file in memory, its bytes after a header."""
    from datasets import ClassLabel, Dataset, Features, Image

    head = b"P5 %d %d 255\n" % (images.shape[2], images.shape[1])
    files = [{"bytes": head + image.tobytes(), "path": None} for image in images]
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"image": files, "label": labels.astype(np.int64)}, features=features)
