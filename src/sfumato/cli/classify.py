"""`sfumato classify`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.classify_stream import (
    UNLIKE,
    EveryOption,
    Stream,
    WatchOption,
    label_lines,
    prediction_as_json,
    print_stream,
)
from sfumato.cli.endpoint import Endpoint
from sfumato.cli.options import flag, option
from sfumato.cli.output import print_json, print_skipped, print_table
from sfumato.cli.progress import bars
from sfumato.errors import BundleError, EndpointError, EndpointFailed, ImageError, SfumatoError
from sfumato.progress import Progress, tracked

if TYPE_CHECKING:
    from sfumato.device import Client, FileClient, Prediction


@command()
def classify(
    images: Annotated[list[Path] | None, typer.Argument(help="Image files, folders of them, or videos.")] = None,
    *,
    server: options.Server = None,
    bundle: options.Obfuscator = None,
    top: Annotated[int, option("N", "Classes to show for each image.", min=1)] = 1,
    watch: WatchOption = None,
    as_json: options.Json = False,
    every_s: EveryOption = None,
    always_send: options.AlwaysSend = False,
    split: Annotated[bool, flag("--split", "Send codes of a few bytes, which the server decodes.")] = False,
    allow_insecure_token: Annotated[bool, flag("--allow-insecure-token", "Send the token without TLS.")] = False,
    endpoint: Endpoint,
) -> None:
    """Classify images in the cloud; only obfuscated images are sent.

    A classifier's bundle without `--server` predicts on the device alone. If an obfuscator's bundle has a gate, images
    whose on-device prediction is certain are not sent at all. If the endpoint fails, the other images get their
    on-device predictions only, and the exit code is 1. `--watch` runs until Ctrl-C.

    Examples:
    - `sfumato classify holiday/ --server https://classify.example.org --top 3`
    - `sfumato classify holiday/ --bundle advice/nets/device-nano-100/bundle`
    - `sfumato classify --watch camera/ --server https://classify.example.org --json`
    - `sfumato classify cat.jpg --server https://example.org/classify --files form --response-path labels --round`
    """
    from sfumato.wire.tracing import start_exporting

    start_exporting("sfumato-device")
    stream = Stream.of(images or [], watch, every_s)
    sources = [] if stream else options.expand_images(images or [])
    client = endpoint.client(
        server,
        options.obfuscator_path(bundle),
        gate=not always_send,
        split=split,
        allow_insecure_token=allow_insecure_token,
    )
    if stream:
        print_stream(client, stream, top=top, as_json=as_json)
    else:
        _classify_all(client, sources, server, top=top, as_json=as_json)


def _classify_all(
    client: Client | FileClient, sources: list[Path], server: str | None, *, top: int, as_json: bool
) -> None:
    from sfumato.device import FileClient

    with bars(quiet=as_json) as shown:
        predictions, failed, broken = _predictions(client, sources, server, shown.progress)
    if as_json:
        about = {"model": None, "fingerprint": "unknown"}
        if not isinstance(client, FileClient):
            about = {"model": client.model, "fingerprint": client.fingerprint}
        entries = [prediction_as_json(source, found, client.bundle.labels, top) for source, found in predictions]
        print_json({"server": server, **about, "predictions": entries, "failed": failed})
    else:
        _print(predictions, failed, client.bundle.labels, top, len(sources))
    if broken is not None:
        raise broken
    if failed:
        raise typer.Exit(1)


def _predictions(
    client: Client | FileClient, sources: list[Path], server: str | None, progress: Progress
) -> tuple[list[tuple[Path, Prediction]], list[dict[str, str]], SfumatoError | None]:
    """Return predictions, images that failed, and the error that ended it, if one did."""
    from sfumato.device import FileClient, FingerprintWarning

    about = None if isinstance(client, FileClient) else client  # the client of an endpoint with metadata
    predictions: list[tuple[Path, Prediction]] = []
    failed: list[dict[str, str]] = []
    broken: SfumatoError | None = None
    with client, warnings.catch_warnings():
        warnings.simplefilter("ignore", FingerprintWarning)  # `_warn_of_another_classifier` says it in one line
        if about and not client.gate_enabled:  # everything will be sent, so warn before
            status = about.check()
            if not status.ready:
                raise EndpointFailed(f"{server} is not ready: {status.reason}")
            _warn_of_another_classifier(about, server)
        for source in tracked(sources, "classifying", progress):
            try:
                found = client.classify(source) if broken is None else client.classify_locally(source)
                if found is not None:
                    predictions.append((source, found))
            except ImageError as error:
                failed.append({"file": str(source), "error": str(error)})
            except EndpointError as error:
                broken = error
            except BundleError as error:
                broken = error
                break
    if about and client.gate_enabled:
        _warn_of_another_classifier(about, server)
    return predictions, failed, broken


def _warn_of_another_classifier(client: Client, server: str | None) -> None:
    if client.fingerprint == "differs":
        typer.echo(
            f"warning: {server} serves another classifier as {client.model!r} than the one this obfuscator was "
            "trained for; its predictions may be incorrect",
            err=True,
        )


def _print(
    predictions: list[tuple[Path, Prediction]],
    failed: list[dict[str, str]],
    labels: tuple[str, ...],
    top: int,
    images: int,
) -> None:
    rows = []
    for source, found in predictions:
        names, scores = label_lines(found, labels, top)
        if found.out_of_distribution:
            names.append(UNLIKE)
        sent = f"{found.payload_bytes:,}", f"{found.obfuscate_ms:.1f}", f"{found.round_trip_ms:.1f}"
        rows.append((str(source), "\n".join(names), "\n".join(scores), found.predicted_by, *sent))
    if rows:
        headers = ("file", "label", "score", "by", "bytes sent", "on-device, ms", "round trip, ms")
        print_table(headers, rows, numbers=(2, 4, 5, 6))
    print_skipped(failed)
    if predictions:
        on_device = sum(found.predicted_by == "device" for _, found in predictions)
        missing = images - len(predictions)
        typer.echo(
            f"{on_device} of {images} handled on-device; {len(predictions) - on_device} sent, obfuscated"
            + (f"; {missing} without a prediction" if missing else "")
        )
