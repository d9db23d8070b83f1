"""Python objects by name: those that users name as `package.module:name`, and public names that load on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError


def import_object(given: str, error: type[SfumatoError]) -> Any:
    """Import an object, given as `module:name`, from the current folder or wherever Python finds it.

    Both may have dots. The module's code runs, as with any import.

    Raises:
        SfumatoError: of the class `error`; it cannot be imported.
    """
    where, _, name = given.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python -m` does, for modules in the current folder
    try:
        found: Any = import_module(where)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as reason:  # whatever the module's own code raises
        raise error(f"{given!r} cannot be imported from {folder}: {type(reason).__name__}: {reason}") from reason
    return found


def lazy(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose names load on first use: module -> names, with spaces."""
    homes = {name: module for module, given in names.items() for name in given.split()}

    def getattribute(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return getattribute, lambda: sorted(import_module(package).__all__)
