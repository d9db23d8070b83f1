"""`sfumato serve`: runs the embedded server, or its replicas on Ray Serve."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.bundle import split_name
from sfumato.cli.app import app
from sfumato.cli.inputs import read_token
from sfumato.cli.output import JsonOption, needs_serve_extra, print_json
from sfumato.errors import ServingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

_RAY_PANEL = "Several replicas, with --engine ray"


class EngineName(StrEnum):
    """What runs the server."""

    EMBEDDED = "embedded"
    RAY = "ray"


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
    engine: Annotated[
        EngineName, typer.Option(help="This process alone, or replicas on Ray Serve.", rich_help_panel=_RAY_PANEL)
    ] = EngineName.EMBEDDED,
    replicas: Annotated[
        str | None,
        typer.Option(help="So many, or as load demands: 4 or 1-8. Default: 1.", rich_help_panel=_RAY_PANEL),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A running cluster. Default: Ray on this machine alone.", rich_help_panel=_RAY_PANEL),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a classifier over the Open Inference Protocol.

    The server knows nothing of obfuscation: it serves any ONNX model, and any client of the protocol can
    use it. It runs until it is interrupted; requests under way are answered first. With --decoder, the same classifier
    also answers codes of a few bytes, drawn by the obfuscator's decoder, which is no secret.

    With --engine ray (pip install 'sfumato[ray]') several replicas of it run behind one address, and those that die are
    replaced.

    Example: `sfumato serve bundles/resnet20 --port 8080`, then `curl http://127.0.0.1:8080/v2/health/ready`
    """
    with needs_serve_extra():
        from sfumato import cloud

    if engine is EngineName.EMBEDDED and (replicas is not None or address is not None):
        raise ServingError("--replicas and --address are for --engine ray")

    def open_models() -> list[cloud.ServedModel]:
        whole = cloud.ServedModel(model, name=name, threads=threads)
        if decoder is None:
            return [whole]
        return [whole, cloud.ServedModel(model, name=split_name(whole.name), threads=threads, decoder=decoder)]

    models = open_models()
    token = read_token(token_file)
    max_body_bytes = int(max_body_mb * 2**20)

    def announce(url: str) -> None:
        if as_json:
            found = {"url": url, "model": models[0].name, "fingerprint": models[0].fingerprint}
            print_json(found if decoder is None else {**found, "split_model": models[1].name})
        else:
            from rich import print as rich_print

            for one in models:
                rich_print(f"serving [bold]{one.name}[/bold] at {url}/v2/models/{one.name} (Ctrl+C stops)")

    if engine is EngineName.RAY:
        if tls_cert is not None or tls_key is not None:
            raise ServingError("--engine ray has no TLS; put a proxy with TLS before it, or serve without it")
        _serve_on_ray(
            lambda: cloud.create_app(open_models(), token=token, max_body_bytes=max_body_bytes),
            replicas=replicas or "1",
            host=host,
            port=port,
            threads=threads,
            address=address,
            announce=announce,
        )
        return
    cloud.serve(
        models,
        host=host,
        port=port,
        token=token,
        tls_cert=tls_cert,
        tls_key=tls_key,
        max_body_bytes=max_body_bytes,
        on_ready=announce,
    )


def _serve_on_ray(
    build: Callable[[], ASGIApp],
    *,
    replicas: str,
    host: str,
    port: int,
    threads: int,
    address: str | None,
    announce: Callable[[str], None],
) -> None:
    from sfumato.cloud.ray import OPEN_PORTS, Replicas, serve_on_ray

    many = Replicas.parse(replicas)
    typer.echo(f"starting {replicas} replica(s) on Ray, which takes some seconds", err=True)
    if address is None:
        typer.echo(OPEN_PORTS, err=True)
    serve_on_ray(build, replicas=many, host=host, port=port, cpus=threads, address=address, on_ready=announce)
