"""`sfumato serve`: runs the embedded server, or its replicas on Ray Serve."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import read_token
from sfumato.cli.output import JsonOption, needs_serve_extra, print_json
from sfumato.errors import ServingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

    from sfumato.cloud import Replicas

MIB = 2**20
_MANY_PANEL = "Several replicas"


class EngineName(StrEnum):
    """What runs the server."""

    EMBEDDED = "embedded"
    RAY = "ray"


class LogFormat(StrEnum):
    """How a line of the log looks."""

    TEXT = "text"
    JSON = "json"


@app.command()
def serve(
    model: Annotated[
        list[Path] | None,
        typer.Argument(help="Classifier bundles' folders, or ONNX files; one or several.", show_default=False),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            help="A folder with NAME/VERSION/model.onnx, as Triton has it, or a bundle as NAME/VERSION.",
            show_default=False,
        ),
    ] = None,
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
    threads: Annotated[int, typer.Option(min=1, help="Threads for one run of a model.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Images in one run; requests that wait are joined.")] = 32,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait for a model; then 503.")] = 256,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Longest request, in MiB.")] = 16.0,
    max_held_mb: Annotated[float, typer.Option(min=0.001, help="All requests in memory, in MiB; then 503.")] = 256.0,
    max_connections: Annotated[int, typer.Option(min=1, help="Connections at once; then 503.")] = 1000,
    receive_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a request may take to arrive.")] = 60.0,
    linger: Annotated[
        float, typer.Option(min=0, help="After SIGTERM: seconds of not being ready, and answering, before leaving.")
    ] = 1.0,
    grace: Annotated[float, typer.Option(min=1, help="Then: seconds for the requests under way.")] = 10.0,
    log_format: Annotated[LogFormat, typer.Option(help="How the log on standard error looks.")] = LogFormat.TEXT,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log a line for each request.")] = False,
    replicas: Annotated[
        str,
        typer.Option(
            help="So many processes behind the one port, each with the models and limits; with --engine ray also as "
            "load demands: 1-8.",
            rich_help_panel=_MANY_PANEL,
        ),
    ] = "1",
    engine: Annotated[
        EngineName,
        typer.Option(help="Processes on this machine, or replicas on Ray Serve.", rich_help_panel=_MANY_PANEL),
    ] = EngineName.EMBEDDED,
    address: Annotated[
        str | None,
        typer.Option(
            help="With --engine ray, a running cluster. Default: Ray on this machine alone.",
            rich_help_panel=_MANY_PANEL,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve classifiers over the Open Inference Protocol.

    The server knows nothing of obfuscation: it serves any ONNX model, and any client of the protocol can
    use it. It runs until it is interrupted; requests under way are answered first. With --decoder, the same classifier
    also answers codes of a few bytes, drawn by the obfuscator's decoder, which is no secret.

    SIGHUP loads what has changed in the files: a new version is tried first, and takes over without a request being
    dropped. GET /metrics is for Prometheus.

    With --replicas it runs in several processes, which use several cores, and those that die are replaced. With
    --engine ray (pip install 'sfumato[ray]') there are as many as load demands, on one machine or a cluster.

    Example: `sfumato serve bundles/resnet20 --port 8080`, then `curl http://127.0.0.1:8080/v2/health/ready`
    """
    with needs_serve_extra():
        from sfumato import cloud
        from sfumato.cloud import logs

    logs.configure(as_json=log_format is LogFormat.JSON)
    many = cloud.Replicas.parse(replicas)
    if engine is EngineName.EMBEDDED and (address is not None or many.least != many.most):
        raise ServingError("--address, and replicas as load demands, are for --engine ray")
    given = model or []
    token = read_token(token_file)
    open_models = partial(
        cloud.catalogue_of, given, models, name=name, decoder=decoder, threads=threads, max_batch=max_batch,
        max_queue=max_queue,
    )  # fmt: skip
    catalogue = open_models()  # with several replicas too, so that what is wrong with a file is told once, and here
    served = [{"name": one.name, "version": one.version, "fingerprint": one.fingerprint} for one in catalogue]
    announce = partial(_announce, served, as_json=as_json, alone=len(given) == 1 and models is None)

    if engine is EngineName.RAY:
        if tls_cert is not None or tls_key is not None:
            raise ServingError("--engine ray has no TLS; put a proxy with TLS before it, or serve without it")
        limits = cloud.Limits(max_body_bytes=int(max_body_mb * MIB), max_held_bytes=int(max_held_mb * MIB))
        _serve_on_ray(
            lambda: cloud.Application(open_models(), token=token, access_log=access_log, limits=limits),
            replicas=many,
            host=host,
            port=port,
            threads=threads,
            address=address,
            announce=announce,
        )
        return
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "token": token,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "limits": cloud.Limits(
            max_body_bytes=int(max_body_mb * MIB),
            max_held_bytes=int(max_held_mb * MIB),
            max_connections=max_connections,
            receive_timeout_s=receive_timeout,
            linger_s=linger,
            grace_s=grace,
        ),
        "access_log": access_log,
        "on_ready": announce,
    }
    if many.most == 1:
        cloud.serve(catalogue, **options)
    else:
        del catalogue  # each replica opens its own
        cloud.serve_replicas(open_models, many.most, log_as_json=log_format is LogFormat.JSON, **options)


def _announce(served: list[dict[str, str]], url: str, *, as_json: bool, alone: bool) -> None:
    if not as_json:
        from rich import print as rich_print

        for one in served:
            shown = f"[bold]{one['name']}[/bold]" + ("" if alone else f", version {one['version']},")
            rich_print(f"serving {shown} at {url}/v2/models/{one['name']} (Ctrl+C stops)")
    elif alone:
        found = {"url": url, "model": served[0]["name"], "fingerprint": served[0]["fingerprint"]}
        print_json(found if len(served) == 1 else {**found, "split_model": served[1]["name"]})
    else:
        print_json({"url": url, "models": served})


def _serve_on_ray(
    build: Callable[[], ASGIApp],
    *,
    replicas: Replicas,
    host: str,
    port: int,
    threads: int,
    address: str | None,
    announce: Callable[[str], None],
) -> None:
    from sfumato.cloud.ray import OPEN_PORTS, serve_on_ray

    typer.echo(f"starting {replicas.least} replica(s) on Ray, which takes some seconds", err=True)
    if address is None:
        typer.echo(OPEN_PORTS, err=True)
    serve_on_ray(build, replicas=replicas, host=host, port=port, cpus=threads, address=address, on_ready=announce)
