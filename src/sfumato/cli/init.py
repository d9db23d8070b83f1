"""`sfumato init`: from a classifier and images to a recipe."""

from __future__ import annotations

import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.adopt import LabelsOption, MeanOption, SizeOption, StdOption, stated
from sfumato.cli.app import app
from sfumato.cli.doctor import print_findings
from sfumato.cli.inputs import read_token
from sfumato.cli.output import JsonOption, needs_train_extra, print_json
from sfumato.errors import SfumatoError


class ObfuscatorKind(StrEnum):
    """Which obfuscator the recipe is for; docs/choosing.md says which to use when."""

    SKETCH = "sketch"
    OBFUSCATOR = "obfuscator"


@app.command()
def init(
    classifier: Annotated[
        str | None,
        typer.Option(
            help="A bundle, a transformers folder or hub id, a .pt2 file, or package.module:callable.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A folder of class folders or parquet files, a .csv, or a hub id.", show_default=False),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="The endpoint that serves the classifier, if there is one.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model's name there. Default: the classifier's.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the recipe and all that follows.")] = Path(
        "protected"
    ),
    kind: Annotated[ObfuscatorKind, typer.Option(help="Which obfuscator.")] = ObfuscatorKind.SKETCH,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    labels: LabelsOption = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token. Default: SFUMATO_TOKEN.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Begin with a classifier, images and perhaps a server of your own: check that they fit, and write a recipe.

    On a terminal it asks for what is not given. Looks at shapes, classes and the classifier's accuracy on plain
    images, and at what the server says of its model; no image is sent. The exit code is 1 if something is bad.

    Example: `sfumato init --classifier google/vit-base-patch16-224 --data photos/ -o mine`
    """
    if classifier is None or data is None:
        classifier, data, server = _asked(classifier, data, server)
    with needs_train_extra():
        from sfumato.apps.doctor import is_well
        from sfumato.lab.classifiers.data_check import pair
    found = pair(
        classifier,
        data,
        out,
        kind=kind.value,
        stated=stated(None, size, mean, std, labels),
        server=server,
        model=model,
        server_options={"token": read_token(token_file)},
    )
    if as_json:
        print_json(
            {
                "well": is_well(found.findings),
                "recipe": None if found.recipe is None else str(found.recipe),
                "accuracy_plain": found.accuracy_plain,
                "findings": [asdict(finding) for finding in found.findings],
                "next": list(found.next_commands),
            }
        )
    else:
        print_findings(found.findings)
        if found.recipe is not None:
            typer.echo(f"\nrecipe: {found.recipe}\nnext:")
            for command in found.next_commands:
                typer.echo(f"  {command}")
    if found.recipe is None:
        raise typer.Exit(1)


def _asked(classifier: str | None, data: str | None, server: str | None) -> tuple[str, str, str | None]:
    if not sys.stdin.isatty():
        missing = [flag for flag, value in (("--classifier", classifier), ("--data", data)) if value is None]
        raise SfumatoError(f"{' and '.join(missing)} must be given; without a terminal nobody can be asked")
    classifier = classifier or typer.prompt("classifier (bundle, transformers folder or hub id, .pt2, module:callable)")
    data = data or typer.prompt("images (folder, .csv or hub id)")
    server = server or typer.prompt("server that has the classifier (empty: none yet)", default="", show_default=False)
    return classifier, data, server or None
