"""`sfumato advise`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.memory import keep_freed_memory
from sfumato.cli.options import option
from sfumato.cli.output import print_json, print_table
from sfumato.cli.progress import bars

if TYPE_CHECKING:
    from sfumato.lab.advice.schema import Advice


@command("train")
def advise(
    classifier: Annotated[
        str,
        typer.Argument(
            help="A bundle, a transformers folder or hub id, a .pt2 file, or package.module:callable.",
            parser=options.place_or_name,
        ),
    ],
    *,
    data: options.Data = "cifar10",
    budget: Annotated[str, option("NAME", "Largest net: nano, paper or large; or multiply-accumulates.")] = "paper",
    minutes: Annotated[float, option("N", "Time for all calls with this folder.", min=0)] = 60,
    out: Annotated[Path, option("DIR", "Folder; what is there is used again.", "--out", "-o")] = Path("advice"),
    as_json: options.Json = False,
    audits: Annotated[Path | None, option("DIR", "Folder of further audits' JSON files.")] = None,
    allow_outside: options.AllowOutside = False,
) -> None:
    """Find out whether to classify on the device, send few images, or send obfuscated ones.

    Measures your classifier on your images: plain, as thumbnails, blurred, pixelated; trains small nets for the device
    and a sketch in the time given; and recommends a way for each of three policies. `advice.html` shows what is
    known so far, after each part. Ctrl-C loses little: the same command continues.

    Example: `sfumato advise vit/ --data photos/ --minutes 20`
    """
    keep_freed_memory()
    from sfumato.lab.advice.run import ADVICE, PAGE
    from sfumato.lab.advice.run import advise as find_out

    with bars(quiet=as_json) as shown:
        found = find_out(
            classifier,
            data,
            out,
            budget=budget,
            minutes=minutes,
            audits=audits,
            allow_outside=allow_outside,
            progress=shown.progress,
            say=shown.say,
        )
    if as_json:
        print_json(found.to_json())
        return
    _print(found)
    typer.echo(f"\nwritten: {out / PAGE}\nwritten: {out / ADVICE}")


def _print(advice: Advice) -> None:
    from sfumato.lab.advice.page import COLUMNS, rows, trained

    print_table(("", *COLUMNS), [(name, *cells) for name, cells in rows(advice)], numbers=range(1, len(COLUMNS)))
    typer.echo(trained(advice))
    for found in advice.recommendations:
        typer.echo(f"\n{found.policy}{' (provisional)' if found.provisional else ''}: {found.way or 'nothing yet'}")
        for sentence in found.sentences:
            typer.echo(f"  {sentence}")
        typer.echo(f"  next: {found.next}")
