"""`sfumato serve`: runs the embedded server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.bundle import split_name
from sfumato.cli.app import app
from sfumato.cli.inputs import read_token
from sfumato.cli.output import JsonOption, needs_serve_extra, print_json


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="A classifier bundle's folder, or an ONNX file.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(help="What clients call the model. Default: its own name.", show_default=False)
    ] = None,
    decoder: Annotated[
        Path | None,
        typer.Option(
            help="An obfuscator bundle whose codes to take, too: as the model NAME-split.", show_default=False
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with a bearer token that clients need. Default: SFUMATO_TOKEN.", show_default=False),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key, PEM.", show_default=False)] = None,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Longest request, in MiB.")] = 16.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads for one run of the model.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Serve a classifier over the Open Inference Protocol.

    The server knows nothing of obfuscation: it serves any ONNX model, and any client of the protocol can
    use it. It runs until it is interrupted; requests under way are answered first. With --decoder, the same classifier
    also answers codes of a few bytes, drawn by the obfuscator's decoder, which is no secret.

    Example: `sfumato serve bundles/resnet20 --port 8080`, then `curl http://127.0.0.1:8080/v2/health/ready`
    """
    with needs_serve_extra():
        from sfumato import cloud

    served = cloud.ServedModel(model, name=name, threads=threads)
    models = [served]
    if decoder is not None:
        split = split_name(served.name)
        models.append(cloud.ServedModel(model, name=split, threads=threads, decoder=decoder))
    token = read_token(token_file)

    def announce(url: str) -> None:
        if as_json:
            found = {"url": url, "model": served.name, "fingerprint": served.fingerprint}
            print_json(found if decoder is None else {**found, "split_model": split_name(served.name)})
        else:
            from rich import print as rich_print

            for one in models:
                rich_print(f"serving [bold]{one.name}[/bold] at {url}/v2/models/{one.name} (Ctrl+C stops)")

    cloud.serve(
        models,
        host=host,
        port=port,
        token=token,
        tls_cert=tls_cert,
        tls_key=tls_key,
        max_body_bytes=int(max_body_mb * 2**20),
        on_ready=announce,
    )
