"""Folders to write results to, and reading the JSON files that commands wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.artifacts.versions import upgraded
from sfumato.errors import ResultsError, TrainingError


def check_writable(folder: Path) -> None:
    """Asks before hours of training whether their result can be kept; makes the folder.

    Raises:
        TrainingError: it cannot.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TrainingError(f"the folder {folder} cannot be written: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; None if there is no such file.

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
