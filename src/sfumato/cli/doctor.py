"""`sfumato doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from sfumato.cli import file_options, options
from sfumato.cli.app import command
from sfumato.cli.options import option
from sfumato.cli.output import print_json, print_table

if TYPE_CHECKING:
    from sfumato.apps.doctor import Finding

_COLOURS = {"good": "green", "note": "yellow", "bad": "red"}


@command
def doctor(
    context: typer.Context,
    bundle: options.ObfuscatorArgument = None,
    *,
    server: options.Server,
    classifier: Annotated[
        Path | None, option("BUNDLE", "Bundle of its classifier, to compare predictions with.")
    ] = None,
    model: options.Model = None,
    token_file: options.TokenFile = None,
    as_json: options.Json = False,
    datatype: options.Datatype = None,
    encoding: options.Encoding = None,
    input_name: options.InputName = None,
    allow_recognisable: options.AllowRecognisable = False,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    proxy: options.Proxy = None,
    timeout_s: options.Timeout = 10.0,
    files: file_options.Files = None,
    field: file_options.Field = None,
    template: file_options.Template = None,
    file_format: file_options.FileFormat = None,
    response_path: file_options.ResponsePath = None,
    response_keys: file_options.ResponseKeys = None,
    rounding: file_options.Round = False,
) -> None:
    """Check a deployed obfuscator and its endpoint from end to end, without any of your images.

    Takes a few seconds and sends a few obfuscated images of random numbers. Each finding says what to do; the exit
    code is 1 if one is bad.

    Example: `sfumato doctor runs/mine/bundle --server https://classify.example.org`
    """
    from sfumato.apps.doctor import examine, is_well

    client = options.client_of(
        server,
        options.open_obfuscator(bundle),
        files=file_options.client_options(context),
        protocol={"model": model, "datatype": datatype, "encoding": encoding, "input_name": input_name},
        connection={
            "token": options.read_token(token_file),
            "ca_file": ca_file,
            "cert_file": cert_file,
            "key_file": key_file,
            "proxy": proxy,
            "allow_recognisable": allow_recognisable,
            "timeout_s": timeout_s,
            "gate": False,  # every image is sent
        },
    )
    found = examine(client, classifier=options.open_classifier(classifier) if classifier else None)
    if as_json:
        print_json({"server": server, "ok": is_well(found), "findings": [asdict(finding) for finding in found]})
    else:
        print_findings(found)
    if not is_well(found):
        raise typer.Exit(1)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print findings as a table."""
    rows = [(one.check, Text(one.verdict, style=_COLOURS[one.verdict]), one.said, one.advice) for one in findings]
    print_table(("check", "", "found", "what to do"), rows)
