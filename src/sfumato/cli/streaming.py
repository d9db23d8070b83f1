"""Streams for `sfumato classify`: a folder in which images appear, and videos; one line for each image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.inputs import expand_images
from sfumato.cli.output import print_json
from sfumato.device.image_folders import IMAGE_SUFFIXES
from sfumato.errors import EndpointError, ImageError, Interrupted, SfumatoError

if TYPE_CHECKING:
    from sfumato.device import Client, FileClient, Prediction
    from sfumato.device.image import ImageSource

_EVERY_S_OF_A_VIDEO = 1.0

WatchOption = Annotated[
    Path | None,
    typer.Option(help="Classify images as they appear in this folder, until Ctrl-C.", show_default=False),
]
EveryOption = Annotated[
    float | None,
    typer.Option(
        "--every",
        min=0,
        help="Seconds between two images of a video (default 1; 0: all), or of --watch (default: all).",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class _Shown:
    """An image of a stream: its file, its place in it if that is a video, and itself."""

    file: Path
    at_s: float | None
    image: ImageSource

    @property
    def name(self) -> str:
        return str(self.file) if self.at_s is None else f"{self.file} at {self.at_s:.3f} s"


@dataclass(frozen=True)
class _Outcome:
    shown: _Shown
    answer: Prediction | None
    error: str = ""


def streams_of(images: list[Path], watch: Path | None, every_s: float | None) -> bool:
    """Whether what was given is a stream.

    Raises:
        SfumatoError: nothing was given, or `--every` without a stream.
    """
    from sfumato.device.video_frames import VIDEO_SUFFIXES

    if not images and watch is None:
        raise SfumatoError("nothing to classify was given: name images, folders or videos, or a folder to --watch")
    stream = watch is not None or any(path.suffix.lower() in VIDEO_SUFFIXES for path in images)
    if every_s is not None and not stream:
        raise SfumatoError("--every is for videos and --watch; neither was given")
    return stream


def print_stream(
    client: Client | FileClient,
    images: list[Path],
    watch: Path | None,
    every_s: float | None,
    *,
    top: int,
    as_json: bool,
) -> None:
    """Classifies a stream and prints a line for each image, then what it came to on standard error.

    An image that cannot be used has a line too. If the endpoint fails, the stream ends; with `watch` the image's
    line says so, and the next is tried.

    Raises:
        Interrupted: Ctrl-C, where it is not the way to end.
        SfumatoError: what ended it.
        typer.Exit: some images could not be classified.
    """
    from sfumato.device.concurrent import in_order

    counts: Counter[str] = Counter()

    def ask(shown: _Shown) -> _Outcome:
        try:
            return _Outcome(shown, client.classify(shown.image))
        except ImageError as error:
            return _Outcome(shown, None, str(error))
        except EndpointError as error:
            if watch is None:
                raise
            return _Outcome(shown, None, str(error))

    stopped = False
    with client:
        try:
            for outcome in in_order(ask, _shown(images, watch, every_s)):
                counts[outcome.answer.predicted_by if outcome.answer else "failed"] += 1
                _print_line(outcome, client.bundle.labels, top, as_json=as_json)
        except KeyboardInterrupt:
            stopped = True
        finally:
            typer.echo(
                f"{counts['device']} answered on the device; {counts['cloud']} sent, obfuscated; "
                f"{counts['failed']} not answered",
                err=True,
            )
    if stopped and watch is None:
        raise Interrupted("stopped; what was answered until then was printed")
    if counts["failed"]:
        raise typer.Exit(1)


def _shown(images: list[Path], watch: Path | None, every_s: float | None) -> Iterator[_Shown]:
    from sfumato.device.video_frames import VIDEO_SUFFIXES, video_images
    from sfumato.device.watch import new_images

    appearing: Iterator[Path] = iter(())
    if watch is not None:
        appearing = new_images(watch, IMAGE_SUFFIXES, every_s=every_s)
        typer.echo(f"watching {watch}; Ctrl-C ends", err=True)
    for path in images:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            for at_s, image in video_images(path, every_s=_EVERY_S_OF_A_VIDEO if every_s is None else every_s):
                yield _Shown(path, at_s, image)
        else:
            yield from (_Shown(file, None, file) for file in expand_images([path]))
    yield from (_Shown(file, None, file) for file in appearing)


def _print_line(outcome: _Outcome, labels: tuple[str, ...], top: int, *, as_json: bool) -> None:
    shown, answer = outcome.shown, outcome.answer
    if as_json:
        place = {} if shown.at_s is None else {"at_s": round(shown.at_s, 3)}
        if answer is None:
            print_json({"file": str(shown.file), **place, "error": outcome.error})
        else:
            print_json({**answer_as_json(shown.file, answer, labels, top), **place})
    elif answer is None:
        typer.echo(f"skipped: {shown.name}: {outcome.error}", err=True)
    else:
        best = ", ".join(
            labels[index] + ("" if math.isnan(value) else f" {value:.1%}") for index, value in answer.top(top)
        )
        typer.echo(f"{shown.name}: {best} ({answer.predicted_by}, {answer.payload_bytes:,} bytes sent)")


def answer_as_json(source: Path, answer: Prediction, labels: tuple[str, ...], top: int) -> dict[str, Any]:
    """One image's answer, as scripts read it."""
    return {
        "file": str(source),
        "label": answer.label,
        "probability": _or_null(answer.probability),
        "top": [{"label": labels[index], "probability": _or_null(value)} for index, value in answer.top(top)],
        "predicted_by": answer.predicted_by,
        "payload_bytes": answer.payload_bytes,
        "obfuscate_ms": round(answer.obfuscate_ms, 3),
        "round_trip_ms": round(answer.round_trip_ms, 3),
    }


def _or_null(probability: float) -> float | None:
    return None if math.isnan(probability) else probability
