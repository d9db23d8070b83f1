"""`sfumato classify`: asks an endpoint what is on images that it never sees."""

from __future__ import annotations

import math
import warnings
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
    AlwaysSendOption,
    CaFileOption,
    DatatypeOption,
    EncodingOption,
    InputNameOption,
    TokenFileOption,
    expand_images,
    obfuscator_bundle,
    read_token,
)
from sfumato.cli.output import JsonOption, print_json, print_skipped, progress
from sfumato.cli.streaming import EveryOption, WatchOption, answer_as_json, print_stream, streams_of
from sfumato.errors import BundleError, EndpointError, EndpointFailed, ImageError, SfumatoError

if TYPE_CHECKING:
    from sfumato.device import Client, FileClient, Prediction


@app.command()
def classify(
    server: Annotated[
        str, typer.Option(help="The endpoint: https://host:port, or grpcs://host:port.", show_default=False)
    ],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files, folders of them, or videos.", show_default=False)
    ] = None,
    watch: WatchOption = None,
    every_s: EveryOption = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Obfuscator bundle. Default: the shipped one.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model's name there. Default: as in the bundle.", show_default=False)
    ] = None,
    datatype: DatatypeOption = None,
    encoding: EncodingOption = None,
    input_name: InputNameOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
    allow_insecure_token: Annotated[
        bool, typer.Option("--allow-insecure-token", help="Send the token without TLS.")
    ] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds to wait for an answer.")] = 10.0,
    always_send: AlwaysSendOption = False,
    split: Annotated[
        bool, typer.Option("--split", help="Send codes of a few bytes to the model that draws them there.")
    ] = False,
    files: FilesOption = None,
    field: FieldOption = None,
    template: TemplateOption = None,
    file_format: FileFormatOption = None,
    answer: AnswerOption = None,
    answer_keys: AnswerKeysOption = None,
    rounding: RoundOption = False,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name for each image.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Classify images in the cloud without showing them.

    Each image is obfuscated here; only the obfuscated one travels. If the bundle has a gate, an image that the
    device is sure of is answered here and not sent at all; the endpoint is not asked anything, not even whether it
    is there, before an image has to be sent.

    An image that cannot be used is reported; the others go on. If the endpoint fails, it is not asked again: the
    answers until then are printed, with those that the device can still give by itself.

    Example: `sfumato classify holiday/ --server https://classify.example.org --top 3`

    Of a video one image a second is classified, or one in --every seconds; with --watch, images are classified as
    they appear in a folder, until Ctrl-C. Each image has a line of its own, printed as soon as it is answered; with
    --json, a JSON object.

    Example: `sfumato classify --watch camera/ --server https://classify.example.org --json`

    The endpoint speaks the Open Inference Protocol, or takes image files if --files says how.

    Example: `sfumato classify cat.jpg --server https://example.org/classify --files form --answer labels --round`
    """
    from sfumato.device import FileClient

    streams = streams_of(images or [], watch, every_s)
    sources = [] if streams else expand_images(images or [])
    of_files = file_options(
        files,
        field=field,
        template=template,
        file_format=file_format,
        answer=answer,
        answer_keys=answer_keys,
        rounding=rounding,
    )
    common = {
        "token": read_token(token_file),
        "timeout_s": timeout_s,
        "ca_file": ca_file,
        "allow_insecure_token": allow_insecure_token,
        "gate": not always_send,
    }
    asked = {"model": model, "datatype": datatype, "encoding": encoding, "input_name": input_name}
    client = _client(server, obfuscator_bundle(bundle), of_files, asked, split=split, **common)
    if streams:
        print_stream(client, images or [], watch, every_s, top=top, as_json=as_json)
        return
    answers, failed, broken = _ask(client, sources, server, quiet=as_json)
    if as_json:
        entries = [answer_as_json(source, answered, client.bundle.labels, top) for source, answered in answers]
        result = {"server": server, "model": None, "fingerprint": "unknown"}
        if not isinstance(client, FileClient):
            result |= {"model": client.model, "fingerprint": client.fingerprint}
        print_json({**result, "answers": entries, "failed": failed})
    else:
        _print_table(answers, failed, client.bundle.labels, top)
        if answers:
            _print_where([answered for _, answered in answers], len(sources))
    if broken is not None:
        raise broken
    if failed:
        raise typer.Exit(1)


def _client(
    server: str,
    bundle: Path,
    of_files: dict[str, Any] | None,
    asked: dict[str, Any],
    *,
    split: bool,
    **common: Any,
) -> Client | FileClient:
    from sfumato.device import Client, FileClient

    if of_files is None:
        return Client(server, bundle, split=split, **asked, **common)
    refuse_beside_files(**asked, split=split or None)
    return FileClient(server, bundle, **of_files, **common)


def _ask(
    client: Client | FileClient, sources: list[Path], server: str, *, quiet: bool
) -> tuple[list[tuple[Path, Prediction]], list[dict[str, str]], SfumatoError | None]:
    """Answers, images that failed, and what broke, if something did."""
    from sfumato.device import FileClient, FingerprintWarning

    says_what_it_serves = None if isinstance(client, FileClient) else client
    answers: list[tuple[Path, Prediction]] = []
    failed: list[dict[str, str]] = []
    broken: SfumatoError | None = None
    with client, warnings.catch_warnings():
        warnings.simplefilter("ignore", FingerprintWarning)  # it is said below, in one line
        if (
            says_what_it_serves and not client.gate_enabled
        ):  # everything will be sent, so it is known early if that is of use
            _check_ready(says_what_it_serves, server)
            _warn_of_another_classifier(says_what_it_serves, server)
        for source in progress(sources, "classifying", quiet=quiet):
            try:
                answer = client.classify(source) if broken is None else client.classify_locally(source)
                if answer is not None:
                    answers.append((source, answer))
            except ImageError as error:
                failed.append({"file": str(source), "error": str(error)})
            except EndpointError as error:
                broken = error
            except BundleError as error:
                broken = error
                break
    if says_what_it_serves and client.gate_enabled:
        _warn_of_another_classifier(says_what_it_serves, server)
    return answers, failed, broken


def _check_ready(client: Client, server: str) -> None:
    status = client.check()
    if not status.ready:
        raise EndpointFailed(f"{server} is not ready: {status.reason}")


def _warn_of_another_classifier(client: Client, server: str) -> None:
    if client.fingerprint == "differs":
        typer.echo(
            f"warning: {server} serves another classifier as {client.model!r} than the one this obfuscator was made "
            "for; its answers may be wrong",
            err=True,
        )


def _print_table(
    answers: list[tuple[Path, Prediction]], failed: list[dict[str, str]], labels: tuple[str, ...], top: int
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("file", "label", "sure", "by", "bytes sent", "here, ms", "there, ms")
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    for column in (table.columns[2], *table.columns[4:]):
        column.justify = "right"
    for source, answer in answers:
        best = answer.top(top)
        table.add_row(
            escape(str(source)),
            escape("\n".join(labels[index] for index, _ in best)),
            "\n".join("not said" if math.isnan(value) else f"{value:.1%}" for _, value in best),
            answer.predicted_by,
            f"{answer.payload_bytes:,}",
            f"{answer.obfuscate_ms:.1f}",
            f"{answer.round_trip_ms:.1f}",
        )
    if answers:
        Console().print(table)
    print_skipped(failed)


def _print_where(answers: list[Prediction], images: int) -> None:
    at_home = sum(answer.predicted_by == "device" for answer in answers)
    said = f"{at_home} of {images} answered on the device; {len(answers) - at_home} sent, obfuscated"
    unanswered = images - len(answers)
    typer.echo(said + (f"; {unanswered} not answered" if unanswered else ""))
