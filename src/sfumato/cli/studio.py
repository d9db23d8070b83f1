"""`sfumato studio`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.output import print_json


@command("serve")
def studio(
    obfuscators: Annotated[
        list[Path] | None,
        options.of_bundle("Obfuscator to choose; repeatable. Default: the shipped ones.", "--obfuscator", "-o"),
    ] = None,
    *,
    classifier: options.Classifier = None,
    port: options.Port = 8090,
    listen: options.Listen,
    provider: options.Provider = None,
    trusted_key: options.TrustedKey = None,
    as_json: options.Json = False,
) -> None:
    """Open a page that shows an image, its payload, the prediction, and what an attacker reconstructs.

    The obfuscator runs in the browser; the page sends only payloads, to this server alone. Runs until Ctrl-C. Browsers
    on other machines need `--tls-cert` and `--tls-key`.

    Example: `sfumato studio`, then open the address that it prints
    """
    from sfumato import cloud
    from sfumato.apps.studio import Pages, collect
    from sfumato.artifacts import shipped

    served = options.open_classifier(classifier, trusted_keys=trusted_key)
    paths = obfuscators or [shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle()]
    pages = Pages(collect([options.open_obfuscator(path, trusted_keys=trusted_key) for path in paths], served))

    def announce(url: str) -> None:
        if as_json:
            print_json({"url": url, "model": served.name, "obfuscators": [str(path) for path in paths]})
        else:
            typer.echo(f"the studio is at {url} (Ctrl-C stops it)")

    model = cloud.ServedModel(served.path, providers=provider or (), trusted_keys=trusted_key)
    cloud.serve([model], port=port, **listen.to_server(), pages=pages, on_ready=announce)
