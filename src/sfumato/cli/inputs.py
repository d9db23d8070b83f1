"""What several commands read in the same way: images, tokens, the shipped bundle."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sfumato.device.image_folders import IMAGE_SUFFIXES
from sfumato.errors import ImageError, SfumatoError

TOKEN_VARIABLE = "SFUMATO_TOKEN"

AlwaysSendOption = Annotated[
    bool,
    typer.Option("--always-send", help="Send every image, obfuscated, even if the bundle's gate would keep it here."),
]
TokenFileOption = Annotated[
    Path | None, typer.Option(help="File with the bearer token. Default: SFUMATO_TOKEN.", show_default=False)
]
CaFileOption = Annotated[
    Path | None,
    typer.Option(help="Authorities to trust, PEM. Default: the system's.", show_default=False),
]


class DatatypeName(StrEnum):
    """What an image may travel in."""

    FP32 = "FP32"
    FP16 = "FP16"
    FP64 = "FP64"
    UINT8 = "UINT8"


class EncodingName(StrEnum):
    """How tensors may travel over HTTP."""

    BINARY = "binary"
    JSON = "json"


DatatypeOption = Annotated[
    DatatypeName | None,
    typer.Option(
        help="In which to send images; UINT8 if the obfuscator's output is 8-bit. Default: what the model takes.",
        show_default=False,
    ),
]
EncodingOption = Annotated[
    EncodingName | None,
    typer.Option(help="How to send over HTTP. Default: binary where the server lists it.", show_default=False),
]
InputNameOption = Annotated[
    str | None,
    typer.Option(help="The model's input, where the server lists none. Default: input.", show_default=False),
]


def expand_images(paths: Iterable[Path]) -> list[Path]:
    """Replaces each folder by the image files that lie in it, in the order of their names.

    Raises:
        ImageError: a folder has none, or cannot be read.
    """
    images: list[Path] = []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        try:
            found = sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES)
        except OSError as error:
            raise ImageError(f"cannot read the folder {path}: {error.strerror}") from error
        if not found:
            raise ImageError(f"the folder {path} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
        images += found
    return images


def read_token(file: Path | None) -> str | None:
    """The token from a file or from the environment; it is no option, because others can read a command line.

    Raises:
        SfumatoError: the file cannot be read or is empty.
    """
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SfumatoError(f"cannot read the token from {file}: {getattr(error, 'strerror', 'not text')}") from None
    if not token:
        raise SfumatoError(f"the token file {file} is empty")
    return token


def image_size(text: str | None) -> tuple[int, int] | None:
    """`64x48` -> (64, 48), rows and columns; None for None.

    Raises:
        SfumatoError: something else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise SfumatoError(f"a size is rows x columns, such as 32x32; got {text!r}")
    return int(found[1]), int(found[2])


def obfuscator_bundle(given: Path | None) -> Path:
    """The bundle given, or the one that is shipped with sfumato."""
    if given is not None:
        return given
    from sfumato.artifacts import shipped

    shipped_bundle: Path = shipped.obfuscator_bundle()
    return shipped_bundle
