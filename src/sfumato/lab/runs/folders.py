"""Folders to write results to, and reading the JSON files that commands wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sfumato.artifacts.versions import upgraded
from sfumato.errors import ResultsError, TrainingError

M = TypeVar("M", bound=BaseModel)


def check_writable(folder: Path) -> None:
    """Make the folder, and check before hours of training that results can be written to it.

    Raises:
        TrainingError: they cannot.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TrainingError(f"the folder {folder} cannot be written: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object, with today's names for its keys; return None if there is no such file.

    Raises:
        ResultsError: the file cannot be read, or holds no JSON object.
    """
    try:
        found = upgraded(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, RecursionError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ResultsError(f"{path} holds a {type(found).__name__}; a JSON object is expected")
    return found


def as_model(path: Path, found: dict[str, Any], kind: type[M]) -> M:
    """Return the content of a JSON file as a model.

    Raises:
        ResultsError: it does not fit.
    """
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ResultsError(f"{path} is malformed ({where}: {first['msg']}); move it away to make it again") from error
