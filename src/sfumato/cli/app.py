"""The `sfumato` command itself: its commands, and how errors and interrupts end it."""

from __future__ import annotations

import sys
import warnings

import typer

from sfumato import __version__
from sfumato.errors import Interrupted, SfumatoError

app = typer.Typer(
    name="sfumato",
    help=(
        "Use a classifier in the cloud without showing it the image.\n\n"
        "An obfuscator on the device changes the image before it travels; an unmodified classifier answers. "
        "This is not encryption: expect the obfuscated image to leak."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def run(commands: typer.Typer) -> None:
    """Run a command line and exit.

    Exit codes: 0 success, 1 an error of ours (one line on standard error), 2 wrong usage, 130 interrupted.
    """
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with an image is said once, by our own error
    try:
        commands()
    except SfumatoError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(130 if isinstance(error, Interrupted) else 1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {place}{error.strerror or type(error).__name__}", err=True)
        sys.exit(1)
