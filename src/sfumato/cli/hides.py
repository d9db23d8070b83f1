"""`sfumato hides`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.output import JsonOption, needs_train_extra, print_json


@app.command()
def hides(
    folder: Annotated[Path, typer.Argument(help="Folder with audits' JSON files that asked for the same columns.")],
    into: Annotated[
        Path | None, typer.Option(help="Put the table into this Markdown page.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what obfuscators hide of label columns and what not, side by side, as a Markdown table.

    What an attacker tells clearly better than from the label alone stands in bold. The audits come from
    `sfumato audit ... --attribute glasses --attribute age`.

    Example: `sfumato hides results/people --into docs/people.md`, where the page has the lines `<!-- sfumato hides -->`
    and `<!-- end -->`
    """
    with needs_train_extra():
        from sfumato.lab.report.attribute_table import markdown, side_by_side, write_into
        from sfumato.lab.report.points import read_audits

    rows = side_by_side(read_audits(folder))
    if as_json:
        print_json({"headers": rows[0], "rows": rows[1:]})
        return
    if into is not None:
        write_into(into, markdown(rows))
    typer.echo(markdown(rows))
