"""Names that commands and options had in version 0.1: they work until `GONE_IN`, with a hint (docs/versions.md)."""

from __future__ import annotations

from collections.abc import Sequence

import typer

GONE_IN = "0.3"
"""The minor version that no longer has the names below."""
_COMMANDS = {
    "adopt": "import",
    "quantize": "export --to int8",
    "transfer": "evaluate --transfer",
    "cost": "evaluate --cost",
    "controls": "audit --check-attacks",
    "references": "audit --references",
    "hides": "audit --attributes-table",
}
_RESPONSE = {"--answer": "--response-path", "--answer-keys": "--response-keys"}
_OPTIONS = {
    "transfer": {"--to": "--classifier"},
    "classify": _RESPONSE,
    "doctor": _RESPONSE,
    "protect": {"--force": "--overwrite", "--share": "--shard"},
    "export": {"--force": "--overwrite"},
    "audit": {"--share": "--budget-scale", "--other": "--other-data", "--beside": "--compare"},
    "frontier": {"--this": "--highlight", "--dial": "--sweep", "--beside": "--compare"},
}
_OF_ALL = {"--pictures": "--images"}


def in_todays_words(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line with today's names, and a hint for each old name in it, that says until when it works.

    Raises:
        typer.Exit: the command is no longer part of `sfumato`; standard error says where it is.
    """
    if not args:
        return [], []
    name, *rest = args
    if name == "reproduce":
        typer.echo("sfumato reproduce is now python -m reproduction, in a clone of the repository", err=True)
        raise typer.Exit(2)
    until = f"; the old name will be removed in {GONE_IN}"
    hints = [f"hint: sfumato {name} is now sfumato {_COMMANDS[name]}{until}"] if name in _COMMANDS else []
    renamed = _OF_ALL | _OPTIONS.get(name, {})
    words = []
    for word in rest:
        option, equals, value = word.partition("=")
        if option in renamed:
            hints.append(f"hint: {option} is now {renamed[option]}{until}")
        words.append(renamed.get(option, option) + equals + value)
    if name == "cost":
        words = _with_size(words)
    return [*_COMMANDS.get(name, name).split(), *words], hints


def _with_size(words: Sequence[str]) -> list[str]:
    """Replace `--height H --width W` by `--size HxW`."""
    left = [part for word in words for part in word.split("=", 1)]
    sides = {"--height": "32", "--width": "32"}
    for flag in [word for word in left if word in sides]:
        at = left.index(flag)
        sides[flag] = (left[at + 1 : at + 2] or [""])[0]
        del left[at : at + 2]
    return [*left, "--size", "x".join(sides.values())]
