"""`python -m reproduction`: the paper's tables, made with sfumato."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reproduction.plan import SIZES, Target
from sfumato.cli import options
from sfumato.cli.app import run
from sfumato.cli.memory import keep_freed_memory
from sfumato.cli.output import needs_extra, print_json
from sfumato.cli.progress import bars
from sfumato.errors import RecipeError
from sfumato.progress import silent

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def reproduce(
    target: Annotated[Target, typer.Argument(help="The table to make; `page` only writes the page again.")],
    size: Annotated[
        str,
        typer.Option(help="cpu: small networks, hours. paper: the paper's networks, shorter schedules, days on a CPU."),
    ] = "cpu",
    lab: Annotated[Path, typer.Option(help="Folder of the trainings and audits.")] = Path("runs/reproduction"),
    results: Annotated[Path, typer.Option(help="Folder of the results files.")] = Path("results/reproduction"),
    page: Annotated[Path, typer.Option(help="The page.")] = Path("docs/reproduction.md"),
    plan: Annotated[
        bool, typer.Option("--plan", help="Only list what is needed, what is there, and the estimated time.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Make the paper's tables again, and compare them with its own figures and with adaptive attackers.

    Trains what is missing, attacks it, measures, and writes the results and the page after each of the paper's rows.
    Ctrl-C saves; the same command resumes.

    Examples: `python -m reproduction all --size paper --plan`, `python -m reproduction table1`
    """
    if size not in SIZES:
        raise RecipeError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
    if target is Target.PAGE:
        from reproduction.page import write_page

        write_page(results, page)
        written = [page]
    else:
        keep_freed_memory()
        with needs_extra("train"):
            from reproduction.listing import listing
            from reproduction.reproduce import make_lab
            from reproduction.reproduce import reproduce as make
        if plan:
            entries = listing(make_lab(SIZES[size], lab, silent), target)
            if as_json:
                print_json({"plan": [vars(entry) for entry in entries]})
            for entry in [] if as_json else entries:
                typer.echo(entry.line)
            return
        with bars(quiet=as_json) as shown:
            written = make(target, make_lab(SIZES[size], lab, shown.progress), results, page, say=shown.say)
    if as_json:
        print_json({"written": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(f"written: {path}")


if __name__ == "__main__":
    run(app)
