"""`sfumato studio`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.output import JsonOption, needs_serve_extra, print_json


@app.command()
def studio(
    obfuscators: Annotated[
        list[Path] | None,
        typer.Option(
            "--obfuscator",
            "-o",
            help="An obfuscator's bundle; give it again for more to choose from. Default: the shipped ones.",
            show_default=False,
        ),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(help="Bundle of the classifier they are made for. Default: the shipped one.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8090,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="Certificate chain, PEM; browsers on other machines need it.", show_default=False),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key, PEM.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """See it in a browser: drop an image, and look at the payload, what comes back and what an attacker reconstructs.

    The obfuscator runs in the browser. The page sends what the obfuscator made, to this server alone, and shows the
    bytes; whatever goes wrong, it sends nothing. It runs until it is interrupted.

    Example: `sfumato studio`, then open the address it prints
    """
    with needs_serve_extra():
        from sfumato import cloud
        from sfumato.apps.studio import Pages, collect
    from sfumato.artifacts import shipped
    from sfumato.artifacts.bundle import Bundle

    served = Bundle.load(classifier or shipped.classifier_bundle(), kind="classifier")
    given = obfuscators or [shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle()]
    pages = Pages(collect([Bundle.load(path, kind="obfuscator") for path in given], served))

    def announce(url: str) -> None:
        if as_json:
            print_json({"url": url, "model": served.name, "obfuscators": [str(path) for path in given]})
        else:
            from rich import print as rich_print

            rich_print(f"the studio is at [bold]{url}[/bold] (Ctrl+C stops)")

    model = cloud.ServedModel(served.path)
    cloud.serve([model], host=host, port=port, tls_cert=tls_cert, tls_key=tls_key, pages=pages, on_ready=announce)
