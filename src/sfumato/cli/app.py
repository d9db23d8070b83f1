"""The `sfumato` command: its panels, how its help looks, and how errors and interrupts end it."""

from __future__ import annotations

import inspect
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import is_dataclass
from functools import wraps
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from sfumato import __version__
from sfumato.artifacts.signals import handled
from sfumato.cli import configuration
from sfumato.cli.options import ADVANCED
from sfumato.cli.output import Extra, needs_extra
from sfumato.cli.renamed import in_todays_words
from sfumato.errors import Interrupted, SfumatoError

PANELS = {
    "Try": ("demo", "studio"),
    "Make": ("advise", "init", "import", "train", "evaluate", "export"),
    "Deploy": ("serve", "classify", "protect", "doctor"),
    "Audit": ("audit", "baseline", "frontier"),
}
"""The commands, in the order in which the help lists them."""
FIRST_OPTIONS = 5
"""The options of a command that its help shows before the panel "Advanced"."""
_MOST_REASON = 300


class _Command(TyperCommand):
    """A command that shows its first options apart, and no type of a flag or an argument.

    Its settings may come from the environment and from files; see `sfumato.cli.configuration`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return list(super().parse_args(ctx, args))
        except typer.BadParameter as error:
            if error.param is not None and (where := configuration.origin(ctx, error.param)) != "command line":
                error.message = f"{error.message} ({where})"
            raise

    def invoke(self, ctx: Any) -> Any:
        if configuration.wants_to_see(ctx):
            typer.echo(configuration.shown(ctx))
            return None
        return super().invoke(ctx)

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)
        plain = [param for param in params if param.param_type_name == "option" and not param.rich_help_panel]
        for param in plain[FIRST_OPTIONS:] if len(plain) > FIRST_OPTIONS + 1 else []:
            param.rich_help_panel = ADVANCED
        for param in params:
            if self.name in configuration.CONFIGURED and param.name != "help":
                param.envvar, param.show_envvar = configuration.variable_of(self.name, param), False
            if param.param_type_name == "option" and param.is_flag and param.metavar is None:
                param.metavar = ""
            if param.param_type_name == "argument":
                param.metavar = param.metavar or param.name.upper()
                param.display_type_rich = lambda ctx: ""
        return params


class _Group(TyperGroup):
    """The command line as a whole; it also understands the names of the version before."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)
        for param in params:
            param.metavar = ""
        return params

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for names in PANELS.values() for name in names if name in self.commands]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words, hints = in_todays_words(args)
        if args and sys.orig_argv[-len(args) :] == args:
            sys.orig_argv[-len(args) :] = words  # `keep_freed_memory` starts this command line again
        for hint in [] if ctx.resilient_parsing else hints:
            typer.echo(hint, err=True)
        return super().parse_args(ctx, words)


app = typer.Typer(
    name="sfumato",
    cls=_Group,
    help=(
        "Use a classifier in the cloud without showing it the image.\n\n"
        "An obfuscator on the device changes the image before it is sent; an unmodified classifier predicts from the "
        "payload. This is not encryption: expect the obfuscated image to leak.\n\n"
        "Start with `sfumato demo`. With a classifier of your own: `sfumato init`."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def command(extra: Extra | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as the command of its name.

    A parameter whose type is a dataclass stands for the options that are its fields.

    Args:
        extra: what the command needs installed besides the device's side.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.rstrip("_")
        signature, groups = inspect.signature(function, eval_str=True), dict[str, list[str]]()
        params: list[inspect.Parameter] = []
        for param in signature.parameters.values():
            kind: type = param.annotation
            if not is_dataclass(kind):
                params.append(param)
                continue
            fields = inspect.signature(kind, eval_str=True).parameters.values()
            groups[param.name] = [field.name for field in fields]
            params += [field.replace(kind=field.KEYWORD_ONLY) for field in fields]

        params = configuration.describe(name, params)

        @wraps(function)
        def run(**given: Any) -> None:
            given = {key: value for key, value in given.items() if key not in configuration.OWN}
            for group, names in groups.items():
                given[group] = signature.parameters[group].annotation(**{key: given.pop(key) for key in names})
            with needs_extra(extra) if extra else nullcontext():
                function(**given)

        run.__signature__ = signature.replace(parameters=sorted(params, key=lambda param: param.kind))  # type: ignore[attr-defined]
        run.__annotations__ = {param.name: param.annotation for param in params}
        (panel,) = (panel for panel, names in PANELS.items() if name in names)
        return app.command(name, cls=_Command, rich_help_panel=panel)(run)

    return register


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def _reason(error: OSError) -> str:
    """Say what went wrong; libraries raise this error with a message of their own, too, or with none."""
    if error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())[:_MOST_REASON] or type(error).__name__


def run(commands: typer.Typer) -> None:
    """Run a command line and exit; SIGTERM interrupts as Ctrl-C does, which a shell's background job ignores.

    Exit codes: 0 success, 1 an error of ours (one line on standard error), 2 incorrect usage, 130 interrupted.
    """
    warnings.filterwarnings("ignore", module="PIL")  # our own error says once what is wrong with an image
    try:
        with handled({signal.SIGTERM: signal.default_int_handler}):
            commands()
    except SfumatoError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(130 if isinstance(error, Interrupted) else 1)
    except OSError as error:
        typer.echo(f"error: {_reason(error)}", err=True)
        sys.exit(1)
