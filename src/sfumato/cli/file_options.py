"""The options for endpoints that take image files, which `classify` and `doctor` have."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any, Literal

import typer

from sfumato.cli.options import option
from sfumato.errors import SfumatoError

_option = partial(option, rich_help_panel="Endpoints that take image files")

Files = Annotated[
    Literal["form", "body", "json"] | None,
    _option("form|body|json", "Send image files to --server, the full address: as a form, as the body, or in JSON."),
]
Field = Annotated[str | None, _option("NAME", "The form's field, or the JSON key. Default: file.")]
Template = Annotated[
    str | None, _option("JSON", "JSON to send; {base64} stands for the file, {type} for its media type.")
]
FileFormat = Annotated[
    Literal["smallest", "png", "webp"] | None,
    _option("FORMAT", "png, webp (lossless), or smallest: the smaller one of each image. Default: smallest."),
]
ResponsePath = Annotated[
    str | None,
    _option("PATH", "Place of the label or the scores in the response: responses.0.labels. Default: its root."),
]
ResponseKeys = Annotated[str | None, _option("A,B", "The keys of label and score. Default: label,score.")]
Round = Annotated[
    bool,
    _option(
        "",
        "Round payloads in [0, 1], such as a sketch's, to 8 bits. Default: accept 8-bit obfuscators only.",
        "--round",
    ),
]

_OF_THE_PROTOCOL = ("model", "datatype", "encoding", "input_name", "split")


def client_options(context: typer.Context) -> dict[str, Any] | None:
    """Return the options of `FileClient` that a command line has; None without `--files`.

    Raises:
        SfumatoError: options of this module without `--files`, others that do not go with it, or malformed ones.
    """
    given = {name: value for name, value in context.params.items() if value}
    names = {"field": "field", "template": "template", "file_format": "file_format", "response_path": "prediction_path"}
    options: dict[str, Any] = {option: given[name] for name, option in names.items() if name in given}
    if "files" not in given:
        if options or "response_keys" in given or "rounding" in given:
            raise SfumatoError("options for image files were given without --files form, body or json")
        return None
    others = [f"--{name.replace('_', '-')}" for name in _OF_THE_PROTOCOL if name in given]
    if others:
        raise SfumatoError(f"{', '.join(others)}: only for the Open Inference Protocol, not with --files; leave it out")
    if "template" in given:
        try:
            options["template"] = json.loads(given["template"])
        except ValueError as error:
            raise SfumatoError(f"--template is not JSON: {error}") from None
    if "response_keys" in given:
        label_key, comma, score_key = given["response_keys"].partition(",")
        if not (label_key and comma and score_key):
            raise SfumatoError(f"--response-keys takes two names, such as label,score; got {given['response_keys']!r}")
        options |= {"label_key": label_key, "score_key": score_key}
    return {"style": given["files"], "rounding": "rounding" in given, **options}
