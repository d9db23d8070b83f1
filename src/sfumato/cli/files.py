"""The options for endpoints that take image files, which several commands have."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from sfumato.errors import SfumatoError

_PANEL = "Endpoints that take image files"


class StyleName(StrEnum):
    """How a file is sent."""

    form = "form"
    body = "body"
    json = "json"


class FileFormatName(StrEnum):
    """What the file is."""

    smallest = "smallest"
    png = "png"
    webp = "webp"


FilesOption = Annotated[
    StyleName | None,
    typer.Option(
        "--files",
        help="Send image files to --server, the full address: in a multipart form, as the body, or in JSON.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
FieldOption = Annotated[
    str | None,
    typer.Option(help="The form's field, or the JSON object's key. Default: file.", rich_help_panel=_PANEL),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        help="JSON to send, with {base64} where the file shall stand and {type} for its media type.",
        rich_help_panel=_PANEL,
    ),
]
FileFormatOption = Annotated[
    FileFormatName | None,
    typer.Option(
        help="png, lossless webp, or what is smaller for each image. Default: smallest.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
AnswerOption = Annotated[
    str | None,
    typer.Option(
        help="Where the label or the scores lie in the answer, such as responses.0.labels. Default: the answer itself.",
        rich_help_panel=_PANEL,
    ),
]
AnswerKeysOption = Annotated[
    str | None,
    typer.Option(help="What label and score are called there. Default: label,score.", rich_help_panel=_PANEL),
]
RoundOption = Annotated[
    bool,
    typer.Option(
        "--round",
        help="Round drawings in [0, 1], such as a sketch's, to 8 bits. Without it only 8-bit obfuscators are taken.",
        rich_help_panel=_PANEL,
    ),
]


def file_options(
    style: StyleName | None,
    *,
    field: str | None,
    template: str | None,
    file_format: FileFormatName | None,
    answer: str | None,
    answer_keys: str | None,
    rounding: bool,
) -> dict[str, Any] | None:
    """What `FileClient` is told; None if no files are to be sent.

    Raises:
        SfumatoError: options for files without --files, or malformed ones.
    """
    given = {"field": field, "template": template, "file_format": file_format, "prediction_path": answer}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if style is None:
        if options or answer_keys is not None or rounding:
            raise SfumatoError("options for image files were given without --files form, body or json")
        return None
    if template is not None:
        try:
            options["template"] = json.loads(template)
        except ValueError as error:
            raise SfumatoError(f"--template is not JSON: {error}") from None
    if answer_keys is not None:
        label_key, comma, score_key = answer_keys.partition(",")
        if not (label_key and comma and score_key):
            raise SfumatoError(f"--answer-keys takes two names, such as label,score; got {answer_keys!r}")
        options |= {"label_key": label_key, "score_key": score_key}
    return {"style": style.value, "rounding": rounding, **options}


def refuse_beside_files(**given: object) -> None:
    """Options of the Open Inference Protocol have no place beside --files.

    Raises:
        SfumatoError: one was given.
    """
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if named:
        raise SfumatoError(f"{', '.join(named)}: of the Open Inference Protocol, which --files is not; leave it out")
