"""`sfumato doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.endpoint import Endpoint
from sfumato.cli.output import print_json, print_table

if TYPE_CHECKING:
    from sfumato.apps.doctor import Finding

_COLOURS = {"good": "green", "note": "yellow", "bad": "red"}


@command()
def doctor(
    bundle: options.ObfuscatorArgument = None,
    *,
    server: options.Server = None,
    classifier: Annotated[
        Path | None, options.of_bundle("Bundle of its classifier, to compare predictions with.")
    ] = None,
    as_json: options.Json = False,
    endpoint: Endpoint,
) -> None:
    """Check a deployed bundle and its endpoint from end to end, without any of your images.

    Says which kind the bundle is. Takes a few seconds and sends a few obfuscated images of random numbers; nothing of a
    classifier's bundle, which needs no `--server`. Each finding says what to do; the exit code is 1 if one is bad.

    Example: `sfumato doctor runs/mine/bundle --server https://classify.example.org`
    """
    from sfumato.apps.doctor import examine, is_well

    client = endpoint.client(server, options.obfuscator_path(bundle), gate=server is None)  # else every image is sent
    keys = endpoint.trusted_key
    compared = options.open_classifier(classifier, trusted_keys=keys, multi_label=True) if classifier else None
    found = examine(client, classifier=compared)
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
