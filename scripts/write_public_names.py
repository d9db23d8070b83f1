"""Write the public names to docs/public-names.txt: `python -m scripts.write_public_names`.

What docs/versions.md promises, one name a line, so that a name which goes or changes is a line of a diff: Python names
with their parameters (`=` marks those with a default), commands with their options, and the formats of files.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer

import sfumato
from sfumato.cli import commands  # noqa: F401  (registers them)
from sfumato.cli.app import PANELS, app

FILE = Path(__file__).parents[1] / "docs" / "public-names.txt"
STABLE = ("sfumato.device", "sfumato", "sfumato.errors")
"""Listed with the parameters and members of their names."""
OTHERS = ("sfumato.cloud", "sfumato.wire", "sfumato.lab.data", "sfumato.lab.models", "sfumato.lab.training")
"""Only their names are listed."""


def listing() -> str:
    """Return the text of the file."""
    lines = ["# Written by python -m scripts.write_public_names. What it promises: docs/versions.md"]
    lines += ["", "# Python", *python_names()]
    lines += ["", "# Python, may change with a minor version", *(f"{m}.{n}" for m in OTHERS for n in names_of(m))]
    lines += ["", "# Commands", *command_names()]
    lines += ["", "# Formats that are read", *format_names()]
    return "\n".join(lines) + "\n"


def names_of(module: str) -> list[str]:
    """Return the public names of a module: those of `__all__`, or its classes if it has none."""
    loaded = import_module(module)
    return sorted(
        getattr(loaded, "__all__", None) or (n for n, value in vars(loaded).items() if inspect.isclass(value))
    )


def python_names() -> Iterator[str]:
    """Yield the names of the stable modules; what has two names is described at the first."""
    described: list[object] = []
    for module in STABLE:
        for name in names_of(module):
            value = getattr(import_module(module), name)
            plain = isinstance(value, str) or (inspect.isclass(value) and issubclass(value, Exception))
            if plain or value in described:
                yield f"{module}.{name}"
                continue
            described.append(value)
            yield f"{module}.{name}{parameters(value)}"
            for member in sorted(dir(value)) if inspect.isclass(value) else ():
                if not member.startswith("_") and member not in inspect.signature(value).parameters:
                    held = getattr(value, member)
                    yield f"{module}.{name}.{member}{parameters(held) if inspect.isroutine(held) else ''}"


def parameters(function: Callable[..., Any]) -> str:
    """Return the parameters in brackets; keyword arguments that a type names (`Unpack`) are listed one by one."""
    positional, keywords = [], []
    for name, param in inspect.signature(function).parameters.items():
        if param.kind is param.VAR_KEYWORD:
            hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)  # type: ignore[misc]
            keywords += [f"{key}=" for key in get_type_hints(get_args(hints[name])[0])]
        elif name != "self":
            where = keywords if param.kind is param.KEYWORD_ONLY else positional
            where.append(name if param.default is param.empty else f"{name}=")
    return f"({', '.join([*positional, *(['*', *keywords] if keywords else [])])})"


def command_names() -> Iterator[str]:
    """Yield each command with its arguments, then its options, with the words that they take if these are fixed."""
    group: Any = typer.main.get_command(app)
    typed = {info.name: getattr(info.callback, "__annotations__", {}) for info in app.registered_commands}
    for name in (name for names in PANELS.values() for name in names):
        params = group.commands[name].params
        arguments = [param.name.upper() for param in params if param.param_type_name == "argument"]
        yield " ".join(["sfumato", name, *arguments])
        options = [param for param in params if param.param_type_name == "option"]
        flags = sorted((flag, param.name) for param in options for flag in param.opts + param.secondary_opts)
        for flag, param in flags:
            yield " ".join(["sfumato", name, flag, "|".join(words_of(typed[name].get(param)))]).rstrip()


def words_of(annotation: Any) -> list[str]:
    """Return the words of the `Literal` in an annotation."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in words_of(part)]


def format_names() -> list[str]:
    """Return the formats that the source names, such as sfumato.bundle/1: an old one goes when nothing reads it."""
    texts = [file.read_text(encoding="utf-8") for file in Path(sfumato.__file__).parent.rglob("*.py")]
    return sorted({found for text in texts for found in re.findall(r'"(sfumato\.[a-z-]+/[0-9]+)"', text)})


if __name__ == "__main__":
    FILE.write_text(listing(), encoding="utf-8")
    print(FILE)
