"""Settings of commands that run for long: on the command line, in the environment, in TOML files, or by default.

One precedence, that of click's `default_map`: command line, environment, file, default. A setting is called as its
option, with underscores: `--max-batch` is `max_batch` in the table `[serve]`, and `SFUMATO_SERVE_MAX_BATCH`.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from sfumato.artifacts.versions import nearest
from sfumato.cli.options import ADVANCED, TOKEN_VARIABLE, option, read_text
from sfumato.errors import SfumatoError

CONFIGURED = ("serve", "studio", "classify", "doctor")
"""The commands that have `--config` and `--show-config`."""
_TOML_TYPES = {
    str: "a string", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "a table",
    date: "a date", datetime: "a date and time", time: "a time of day",
}  # fmt: skip
_HIDDEN: dict[str, Any] = {"expose_value": False, "rich_help_panel": ADVANCED}
OWN = ("config", "show_config")
_META = "sfumato.configuration"
_SECRET = "***"
_SECRETS = ("template",)  # may hold a key; no other option takes a secret
_URL_SECRETS = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=\?)\S+")


@dataclass(frozen=True)
class _Kind:
    """What a setting takes: values of which type, and whether several."""

    type: type
    several: bool

    @classmethod
    def of(cls, annotation: Any) -> _Kind:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        if get_origin(annotation) in (Union, UnionType):
            (annotation,) = (each for each in get_args(annotation) if each is not NoneType)
        if get_origin(annotation) is list:
            return cls(cls.of(get_args(annotation)[0]).type, several=True)
        return cls(annotation if annotation in (bool, int, float) else str, several=False)

    def takes(self, value: object) -> bool:
        if self.several:
            one = _Kind(self.type, several=False)
            return isinstance(value, list) and all(one.takes(each) for each in value)
        allowed = (int, float) if self.type is float else self.type
        return isinstance(value, allowed) and (self.type is bool or not isinstance(value, bool))

    def __str__(self) -> str:
        return f"a list, each {_TOML_TYPES[self.type]}" if self.several else _TOML_TYPES[self.type]


_KINDS: dict[str, dict[str, _Kind]] = {}


def describe(command: str, parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    """Return a command's parameters, with `--config` and `--show-config` if it has them; remember their types."""
    found = list(parameters)
    if command not in CONFIGURED:
        return found
    _KINDS[command] = {each.name: _Kind.of(each.annotation) for each in found}
    given = {
        "config": (
            list[Path] | None,
            option(
                "FILE", f"TOML file with a table [{command}]; repeatable.", callback=_load, is_eager=True, **_HIDDEN
            ),
            None,
        ),
        "show_config": (
            bool,
            typer.Option("--show-config", help="Print each setting and its origin.", callback=_note, **_HIDDEN),
            False,
        ),
    }
    return found + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, how])
        for name, (kind, how, default) in given.items()
    ]


def name_of(param: Any) -> str:
    """Return a parameter's name as a setting: that of its option as users write it, with underscores."""
    long = [name for name in param.opts if name.startswith("--")]
    return (long[0].removeprefix("--") if long else str(param.name)).replace("-", "_")


def variable_of(command: str, param: Any) -> str:
    """Return the environment variable of a command's parameter."""
    return f"SFUMATO_{command}_{name_of(param)}".upper()


def origin(ctx: typer.Context, param: Any) -> str:
    """Return where the value of a parameter comes from, for people."""
    source = ctx.get_parameter_source(param.name)
    match source and source.name:
        case "COMMANDLINE":
            return "command line"
        case "ENVIRONMENT":
            return f"environment, {param.envvar}"
        case "DEFAULT_MAP":
            return f"file, {ctx.meta[_META].get(param.name)}"
    return "default"


def wants_to_see(ctx: typer.Context) -> bool:
    """Return whether `--show-config` was given."""
    return bool(ctx.meta.get(f"{_META}.show"))


def shown(ctx: typer.Context) -> str:
    """Return all settings as a TOML table that `--config` takes, each with its origin; secrets are not shown."""
    command, lines = str(ctx.command.name), []
    for param in ctx.command.params:
        if param.name in ctx.params:
            value = _as_toml(param.name, ctx.params[param.name])
            name = name_of(param)
            lines.append((f"# {name} =" if value is None else f"{name} = {value}", origin(ctx, param)))
    if os.environ.get(TOKEN_VARIABLE) and command != "studio":
        lines.append((f'# token = "{_SECRET}"', f"environment, {TOKEN_VARIABLE}; token_file goes before it"))
    width = max(len(text) for text, _ in lines)
    return "\n".join([f"[{command}]", *(f"{text:{width}}  # {where}" for text, where in lines)])


def _as_toml(name: str, value: object) -> str | None:
    """Return a value as TOML; None for none."""
    match value:
        case None:
            return None
        case list() | tuple():
            return f"[{', '.join(_as_toml(name, each) or '' for each in value)}]"
        case bool() | int() | float():
            return json.dumps(value)
    return json.dumps(_SECRET if name in _SECRETS else _URL_SECRETS.sub(_SECRET, str(value)), ensure_ascii=False)


def _note(ctx: typer.Context, value: bool) -> None:
    ctx.meta[f"{_META}.show"] = value


def _load(ctx: typer.Context, files: list[Path] | None) -> None:
    """Read the files, and check the names in them and in the environment.

    Raises:
        SfumatoError: a file cannot be read or is malformed, two disagree, or a name is unknown.
    """
    if ctx.resilient_parsing:
        return
    _check_environment(ctx)
    found: dict[str, tuple[object, Path]] = {}
    for file in files or ():
        for name, value in _read(ctx, file).items():
            if name in found and found[name][0] != value:
                raise SfumatoError(
                    f"{found[name][1]} and {file} disagree about {name_of(_params(ctx.command)[name])}; set it in one "
                    "of them"
                )
            found[name] = value, file
    ctx.default_map = {name: value for name, (value, _) in found.items()}
    ctx.meta[_META] = {name: file for name, (_, file) in found.items()}


def _check_environment(ctx: typer.Context) -> None:
    """Refuse variables that look like this command's settings and are none: a typing error could open a server."""
    prefix = f"SFUMATO_{ctx.command.name}_".upper()
    known = {name: name for name in (variable_of(str(ctx.command.name), param) for param in ctx.command.params)}
    for name in sorted(os.environ):
        if name.startswith(prefix) and name not in known:
            raise SfumatoError(f"the environment variable {name} is no setting of sfumato{nearest(name, known)}")


def _read(ctx: typer.Context, file: Path) -> dict[str, Any]:
    """Return this command's settings in a file, by the parameters' names; the other tables are checked, too."""
    try:
        tables = tomllib.loads(read_text(file, "settings"))
    except tomllib.TOMLDecodeError as error:
        raise SfumatoError(f"{file} is not TOML: {error}") from None
    commands: Mapping[str, Any] = ctx.parent.command.commands if ctx.parent else {}  # type: ignore[attr-defined]
    checked: dict[str, dict[str, Any]] = {}
    for table, settings in tables.items():
        if table not in CONFIGURED or not isinstance(settings, dict):
            raise SfumatoError(f"{file}: {table!r} is no table of settings; known are {', '.join(CONFIGURED)}")
        checked[table] = _checked(file, table, settings, _params(commands[table]))
    return checked.get(str(ctx.command.name), {})


def _checked(file: Path, table: str, settings: Mapping[str, object], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table's settings by the names of parameters; no message holds a value, which may be secret."""
    by_setting = {name_of(param): name for name, param in params.items() if name not in OWN}
    found = {}
    for setting, value in settings.items():
        name = by_setting.get(setting)
        if name is None:
            raise SfumatoError(
                f"{file}: [{table}] has no setting {setting!r}{nearest(setting, {one: one for one in by_setting})}"
            )
        kind = _KINDS[table][name]
        if not kind.takes(value):
            raise SfumatoError(f"{file}: {setting} in [{table}] has to be {kind}, got {_TOML_TYPES[type(value)]}")
        found[name] = value
    return found


def _params(command: Any) -> dict[str, Any]:
    return {param.name: param for param in command.params}
