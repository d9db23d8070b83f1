"""`sfumato serve`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.options import flag, option
from sfumato.cli.output import print_json
from sfumato.errors import ServingError

if TYPE_CHECKING:
    from sfumato.cloud import Limits, Replicas

MIB = 2**20


TokensFile = Annotated[
    Path | None,
    option("FILE", f"Bearer tokens: a line each, a name before it or none. Default: ${options.TOKEN_VARIABLE}."),
]


@dataclass(frozen=True)
class LimitOptions:
    """The options that become `sfumato.cloud.Limits`; each attribute is the option of its name."""

    max_body_mb: Annotated[float, option("MIB", "Longest request.", min=0.001)] = 16.0
    max_held_mb: Annotated[float, option("MIB", "All requests in memory; further ones get 503.", min=0.001)] = 256.0
    max_connections: Annotated[int, option("N", "Connections at once; further ones get 503.", min=1)] = 1000
    max_rate: Annotated[float | None, option("N", "Images per second of each token; beyond, 429.", min=0.001)] = None
    head_timeout: Annotated[float, option("SECONDS", "How long a request's head may take to arrive.", min=0.1)] = 10.0
    receive_timeout: Annotated[float, option("SECONDS", "How long a request may take to arrive.", min=0.1)] = 60.0
    send_timeout: Annotated[float, option("SECONDS", "How long 64 KiB of a response may take.", min=0.1)] = 60.0
    linger: Annotated[float, option("SECONDS", "After SIGTERM: respond, not ready, for so long.", min=0)] = 1.0
    grace: Annotated[float, option("SECONDS", "After that: time for open requests.", min=1)] = 10.0


@command("serve")
def serve(
    model: Annotated[
        list[Path] | None, typer.Argument(help="Classifier bundles or ONNX files.", parser=options.bundle_place)
    ] = None,
    *,
    port: options.Port = 8080,
    listen: options.Listen,
    name: Annotated[str | None, option("NAME", "The model's name. Default: its own.")] = None,
    token_file: TokensFile = None,
    replicas: Annotated[str, option("N", "Processes behind the port; of --engine ray also 1-8.")] = "1",
    models: Annotated[Path | None, option("DIR", "Folder of NAME/VERSION/model.onnx, or of bundles.")] = None,
    decoder: Annotated[Path | None, options.of_bundle("Obfuscator whose codes to decode, as NAME-split.")] = None,
    client_ca: Annotated[Path | None, option("FILE", "Authorities; clients need a certificate of one, PEM.")] = None,
    audit_log: Annotated[Path | None, option("FILE", "Add a line for each request: who asked, no content.")] = None,
    provider: options.Provider = None,
    trusted_key: options.TrustedKey = None,
    threads: Annotated[int, option("N", "Threads for one run of a model.", min=1)] = 1,
    max_batch: Annotated[int, option("N", "Images in one run; waiting requests are joined.", min=1)] = 32,
    max_queue: Annotated[int, option("N", "Requests that may wait for a model; further ones get 503.", min=1)] = 256,
    given_limits: LimitOptions,
    log_format: Annotated[Literal["text", "json"], option(None, "Format of the log on standard error.")] = "text",
    access_log: Annotated[bool, flag("--access-log", "Log a line for each request.")] = False,
    engine: Annotated[
        Literal["embedded", "ray"], option(None, "Processes here, or replicas on Ray Serve.")
    ] = "embedded",
    address: Annotated[str | None, option("ADDRESS", "Ray: a running cluster. Default: this machine.")] = None,
    as_json: options.Json = False,
) -> None:
    """Serve classifiers over the Open Inference Protocol, for any client of it.

    Runs until Ctrl-C, and completes open requests first. SIGHUP loads new versions of the files, and tokens;
    GET /metrics is for Prometheus. The server does not depend on obfuscation: it serves any ONNX model. Replicas that
    die are replaced; `--engine ray` (`pip install 'sfumato[ray]'`) scales them with the load.

    Example: `sfumato serve bundles/resnet20 --port 8080`, then `curl http://127.0.0.1:8080/v2/health/ready`
    """
    from sfumato import cloud
    from sfumato.cloud import logs
    from sfumato.wire.tracing import SERVICE, start_exporting

    logs.configure(as_json=log_format == "json")
    if engine == "embedded" and replicas == "1":  # replicas trace themselves
        start_exporting(SERVICE)
    many = _replicas(replicas, engine, address, tls=any((listen.tls_cert, listen.tls_key, client_ca)))
    paths = model or []
    how: dict[str, Any] = {"threads": threads, "max_batch": max_batch, "max_queue": max_queue}
    how |= {"providers": provider or (), "trusted_keys": trusted_key}
    open_models = partial(cloud.catalogue_of, paths, models, name=name, decoder=decoder, **how)
    catalogue = open_models()  # for several replicas, too: a damaged file is named once, here
    served = [{"name": one.name, "version": one.version, "fingerprint": one.fingerprint} for one in catalogue]
    announce = partial(_announce, served, as_json=as_json, alone=len(paths) == 1 and models is None)
    app: cloud.ApplicationOptions = {
        "token": options.read_token(None) if token_file is None else None,
        "token_file": token_file,
        "limits": _limits(given_limits),
        "access_log": access_log,
        "allowed_hosts": listen.allowed_host or (),
        "audit_log": audit_log,
    }
    at: dict[str, Any] = {"port": port, "on_ready": announce}
    if engine == "ray":
        from sfumato.cloud.ray import OPEN_PORTS, serve_on_ray

        cloud.check_options(app)
        loopback = listen.host == "localhost" or cloud.is_loopback(listen.host)
        starting = f"starting {many.least} replica(s) on Ray, which takes some seconds"
        typer.echo(starting if address else f"{starting}\n{OPEN_PORTS}", err=True)
        serve_on_ray(
            lambda: cloud.Application(open_models(), loopback=loopback, **app),
            replicas=many,
            host=listen.host,
            cpus=threads,
            address=address,
            **at,
        )
        return
    at |= {**app, **listen.to_server(), "client_ca": client_ca}
    if many.most == 1:
        cloud.serve(catalogue, **at)
    else:
        del catalogue  # each replica opens its own
        cloud.serve_replicas(open_models, many.most, log_as_json=log_format == "json", **at)


def _limits(given: LimitOptions) -> Limits:
    from sfumato.cloud import Limits

    return Limits(
        max_body_bytes=int(given.max_body_mb * MIB),
        max_held_bytes=int(given.max_held_mb * MIB),
        max_connections=given.max_connections,
        max_rate=math.inf if given.max_rate is None else given.max_rate,
        head_timeout_s=given.head_timeout,
        receive_timeout_s=given.receive_timeout,
        send_timeout_s=given.send_timeout,
        linger_s=given.linger,
        grace_s=given.grace,
    )


def _replicas(replicas: str, engine: str, address: str | None, *, tls: bool) -> Replicas:
    from sfumato.cloud import Replicas

    many = Replicas.parse(replicas)
    if engine == "embedded" and (address is not None or many.least != many.most):
        raise ServingError("--address, and a range of --replicas, are for --engine ray")
    if engine == "ray" and tls:
        raise ServingError("--engine ray has no TLS; put a proxy with TLS in front of it, or serve without it")
    return many


def _announce(served: list[dict[str, str]], url: str, *, as_json: bool, alone: bool) -> None:
    if not as_json:
        for one in served:
            version = "" if alone else f", version {one['version']},"
            typer.echo(f"serving {one['name']}{version} at {url}/v2/models/{one['name']} (Ctrl-C stops it)")
    elif alone:
        found = {"url": url, "model": served[0]["name"], "fingerprint": served[0]["fingerprint"]}
        print_json(found if len(served) == 1 else {**found, "split_model": served[1]["name"]})
    else:
        print_json({"url": url, "models": served})
