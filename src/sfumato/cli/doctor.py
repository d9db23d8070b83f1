"""`sfumato doctor`: checks a deployed pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.app import app
from sfumato.cli.files import (
    AnswerKeysOption,
    AnswerOption,
    FieldOption,
    FileFormatOption,
    FilesOption,
    RoundOption,
    TemplateOption,
    file_options,
    refuse_beside_files,
)
from sfumato.cli.inputs import (
    CaFileOption,
    DatatypeOption,
    EncodingOption,
    InputNameOption,
    TokenFileOption,
    obfuscator_bundle,
    read_token,
)
from sfumato.cli.output import JsonOption, print_json

if TYPE_CHECKING:
    from sfumato.apps.doctor import Finding

_MARKS = {"good": "[green]good[/green]", "note": "[yellow]note[/yellow]", "bad": "[red]bad[/red]"}


@app.command()
def doctor(
    server: Annotated[
        str, typer.Option(help="The endpoint: https://host:port, or grpcs://host:port.", show_default=False)
    ],
    bundle: Annotated[
        Path | None, typer.Argument(help="Obfuscator bundle. Default: the shipped one.", show_default=False)
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Bundle of its classifier, to compare answers with.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model's name there. Default: as in the bundle.", show_default=False)
    ] = None,
    datatype: DatatypeOption = None,
    encoding: EncodingOption = None,
    input_name: InputNameOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds to wait for an answer.")] = 10.0,
    files: FilesOption = None,
    field: FieldOption = None,
    template: TemplateOption = None,
    file_format: FileFormatOption = None,
    answer: AnswerOption = None,
    answer_keys: AnswerKeysOption = None,
    rounding: RoundOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a deployed pair from end to end, without any image of yours.

    What is sent are obfuscated images that are drawn from random numbers. Says of each thing whether it is well and
    what to do if not; the exit code is 1 if something is bad.

    Example: `sfumato doctor runs/mine/bundle --server https://classify.example.org --classifier runs/mine/classifier`

    An endpoint that takes image files says nothing of itself; there the answers are looked at.

    Example: `sfumato doctor runs/mine/bundle --server https://example.org/classify --files form`
    """
    from sfumato.apps.doctor import examine, is_well
    from sfumato.artifacts.bundle import Bundle
    from sfumato.device import Client, FileClient

    of_files = file_options(
        files,
        field=field,
        template=template,
        file_format=file_format,
        answer=answer,
        answer_keys=answer_keys,
        rounding=rounding,
    )
    found_bundle = Bundle.load(obfuscator_bundle(bundle), kind="obfuscator")
    asked: dict[str, Any] = {"model": model, "datatype": datatype, "encoding": encoding, "input_name": input_name}
    common: dict[str, Any] = {
        "token": read_token(token_file),
        "ca_file": ca_file,
        "timeout_s": timeout_s,
        "gate": False,
    }
    client: Client | FileClient
    if of_files is None:
        client = Client(server, found_bundle, **asked, **common)
    else:
        refuse_beside_files(**asked)
        client = FileClient(server, found_bundle, **of_files, **common)
    found = examine(client, classifier=Bundle.load(classifier, kind="classifier") if classifier else None)
    if as_json:
        print_json({"server": server, "well": is_well(found), "findings": [asdict(finding) for finding in found]})
    else:
        print_findings(found)
    if not is_well(found):
        raise typer.Exit(1)


def print_findings(findings: Sequence[Finding]) -> None:
    """Prints findings as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("what", "", "found", "what to do", box=None, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.overflow = "fold"
    for finding in findings:
        table.add_row(finding.check, _MARKS[finding.verdict], escape(finding.said), escape(finding.advice))
    Console().print(table)
