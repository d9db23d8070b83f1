"""`sfumato init`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.doctor import print_findings
from sfumato.cli.import_ import Description
from sfumato.cli.options import option
from sfumato.cli.output import print_json
from sfumato.cli.progress import bars
from sfumato.errors import SfumatoError


@command("train")
def init(
    *,
    classifier: Annotated[
        str | None,
        option("MODEL", "A bundle, a transformers folder or hub id, a .pt2 file, or package.module:callable."),
    ] = None,
    data: Annotated[
        str | None, option("DATA", "A folder of class folders or parquet files, a .csv, or a hub id.")
    ] = None,
    server: Annotated[str | None, option("URL", "The endpoint that serves the classifier, if there is one.")] = None,
    out: Annotated[Path, option("DIR", "Folder for the recipe.", "--out", "-o")] = Path("protected"),
    kind: Annotated[Literal["sketch", "obfuscator"], option(None, "Which obfuscator.")] = "sketch",
    model: options.Model = None,
    description: Description,
    allow_outside: options.AllowOutside = False,
    token_file: options.TokenFile = None,
    as_json: options.Json = False,
) -> None:
    """Check that a classifier, images and a server fit together, and write a recipe.

    Takes a minute, and asks for what is missing on a terminal. Checks shapes, classes, the accuracy on plain images,
    and the server's metadata; no image is sent. The exit code is 1 if a finding is bad.

    Example: `sfumato init --classifier google/vit-base-patch16-224 --data photos/ -o mine`
    """
    if classifier is None or data is None:
        classifier, data, server = _prompted(classifier, data, server)
    from sfumato.apps.doctor import is_well
    from sfumato.lab.classifiers.data_check import check_data

    metadata, token = description.metadata(), options.read_token(token_file)
    with bars(quiet=as_json) as shown:
        found = check_data(
            classifier,
            data,
            out,
            kind=kind,
            metadata=metadata,
            allow_outside=allow_outside,
            server=server,
            model=model,
            token=token,
            progress=shown.progress,
        )
    if as_json:
        recipe, findings = found.recipe and str(found.recipe), [asdict(finding) for finding in found.findings]
        result = {"ok": is_well(found.findings), "recipe": recipe, "accuracy_plain": found.accuracy_plain}
        print_json({**result, "findings": findings, "next": list(found.next_commands)})
    else:
        print_findings(found.findings)
        if found.recipe is not None:
            typer.echo(f"\nrecipe: {found.recipe}\nnext:")
            for line in found.next_commands:
                typer.echo(f"  {line}")
    if found.recipe is None:
        raise typer.Exit(1)


def _prompted(classifier: str | None, data: str | None, server: str | None) -> tuple[str, str, str | None]:
    if not sys.stdin.isatty():
        missing = [option for option, value in (("--classifier", classifier), ("--data", data)) if value is None]
        raise SfumatoError(f"there is no terminal to ask on: add {' and '.join(missing)}")
    classifier = classifier or typer.prompt("classifier (bundle, transformers folder or hub id, .pt2, module:callable)")
    data = data or typer.prompt("images (folder, .csv or hub id)")
    server = server or typer.prompt("server of the classifier (empty: none yet)", default="", show_default=False)
    return classifier, data, server or None
