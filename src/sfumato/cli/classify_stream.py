"""`sfumato classify` of a stream: a folder in which images appear, or videos; one line for each image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli import options
from sfumato.cli.options import option
from sfumato.cli.output import percent, print_json
from sfumato.device.image_folders import new_images
from sfumato.errors import EndpointError, ImageError, Interrupted, SfumatoError

if TYPE_CHECKING:
    from sfumato.device import Client, FileClient, Prediction
    from sfumato.device.image import ImageSource

_EVERY_S_OF_A_VIDEO = 1.0
UNLIKE = "unlike the training images: do not rely on this"
"""What is said of a prediction for an image that is out of distribution."""

WatchOption = Annotated[Path | None, option("DIR", "Classify images as they appear in this folder, until Ctrl-C.")]
EveryOption = Annotated[
    float | None,
    option(
        "SECONDS",
        "Time between two images of a video (default 1; 0: all), or of --watch (default: all).",
        "--every",
        min=0,
    ),
]


@dataclass(frozen=True)
class Stream:
    """The images of `sfumato classify` where they are a stream.

    Attributes:
        paths: image files, folders of them, and videos.
        watch: a folder in which images appear.
        every_s: the time between two images of a video or of `watch`; None for the default.
    """

    paths: list[Path]
    watch: Path | None
    every_s: float | None

    @classmethod
    def of(cls, paths: list[Path], watch: Path | None, every_s: float | None) -> Stream | None:
        """Return the stream; None if the images are files only.

        Raises:
            SfumatoError: there are no images, or `--every` without a stream.
        """
        from sfumato.device.video_frames import VIDEO_SUFFIXES

        if not paths and watch is None:
            raise SfumatoError("nothing to classify: name images, folders or videos, or a folder to --watch")
        if watch is not None or any(path.suffix.lower() in VIDEO_SUFFIXES for path in paths):
            return cls(paths, watch, every_s)
        if every_s is not None:
            raise SfumatoError("--every is for videos and --watch; add one of them, or leave it out")
        return None

    def frames(self) -> Iterator[_Frame]:
        """Yield the images, as they come."""
        from sfumato.device.video_frames import VIDEO_SUFFIXES, video_images

        appearing: Iterator[Path] = iter(())
        if self.watch is not None:
            appearing = new_images(self.watch, every_s=self.every_s)
            typer.echo(f"watching {self.watch}; Ctrl-C ends", err=True)
        for path in self.paths:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                every_s = _EVERY_S_OF_A_VIDEO if self.every_s is None else self.every_s
                yield from (_Frame(path, at_s, image) for at_s, image in video_images(path, every_s=every_s))
            else:
                yield from (_Frame(file, None, file) for file in options.expand_images([path]))
        yield from (_Frame(file, None, file) for file in appearing)


@dataclass(frozen=True)
class _Frame:
    """An image of a stream: its file, its time in seconds if that is a video, and the image."""

    file: Path
    at_s: float | None
    image: ImageSource

    @property
    def name(self) -> str:
        return str(self.file) if self.at_s is None else f"{self.file} at {self.at_s:.3f} s"


def print_stream(client: Client | FileClient, stream: Stream, *, top: int, as_json: bool) -> None:
    """Classify a stream, print a line for each image, and at the end the counts on standard error.

    An image that cannot be used has a line, too. If the endpoint fails, the stream ends; with `--watch` the image's
    line says so, and the next image is tried.

    Raises:
        Interrupted: Ctrl-C, unless `--watch` makes it the way to end.
        SfumatoError: the error that ended the stream.
        typer.Exit: some images have no prediction.
    """
    from sfumato.device.concurrent import in_order

    counts: Counter[str] = Counter()

    def classify(frame: _Frame) -> tuple[_Frame, Prediction | str]:
        try:
            return frame, client.classify(frame.image)
        except ImageError as error:
            return frame, str(error)
        except EndpointError as error:
            if stream.watch is None:
                raise
            return frame, str(error)

    stopped = False
    with client:
        try:
            for frame, found in in_order(classify, stream.frames()):
                counts["failed" if isinstance(found, str) else found.predicted_by] += 1
                _print_line(frame, found, client.bundle.labels, top, as_json=as_json)
        except KeyboardInterrupt:
            stopped = True
        finally:
            typer.echo(
                f"{counts['device']} handled on-device; {counts['cloud']} sent, obfuscated; "
                f"{counts['failed']} without a prediction",
                err=True,
            )
    if stopped and stream.watch is None:
        raise Interrupted("interrupted; the predictions so far are printed")
    if counts["failed"]:
        raise typer.Exit(1)


def _print_line(frame: _Frame, found: Prediction | str, labels: tuple[str, ...], top: int, *, as_json: bool) -> None:
    if as_json:
        at_s = {} if frame.at_s is None else {"at_s": round(frame.at_s, 3)}
        if isinstance(found, str):
            print_json({"file": str(frame.file), **at_s, "error": found})
        else:
            print_json({**prediction_as_json(frame.file, found, labels, top), **at_s})
    elif isinstance(found, str):
        typer.echo(f"skipped: {frame.name}: {found}", err=True)
    else:
        best = ", ".join(" ".join(pair) for pair in zip(*label_lines(found, labels, top), strict=True))
        warning = f"; {UNLIKE}" if found.out_of_distribution else ""
        typer.echo(f"{frame.name}: {best} ({found.predicted_by}, {found.payload_bytes:,} bytes sent){warning}")


def label_lines(found: Prediction, labels: tuple[str, ...], top: int) -> tuple[list[str], list[str]]:
    """Return the most probable labels and their probabilities, "no score" where the endpoint gives none.

    If only one was asked for, these are the classes that are present; of a multi-label classifier several, or "none".
    """
    best = found.top(len(found.present) if top == 1 else top)
    if not best:
        return ["none"], [f"{labels[found.index]} {percent(found.probability, 1)}"]
    scores = ["no score" if math.isnan(value) else percent(value, 1) for _, value in best]
    return [labels[index] for index, _ in best], scores


def prediction_as_json(source: Path, found: Prediction, labels: tuple[str, ...], top: int) -> dict[str, object]:
    """Return an image's prediction for scripts."""

    def or_null(probability: float) -> float | None:
        return None if math.isnan(probability) else probability

    return {
        "file": str(source),
        "label": found.label,
        "probability": or_null(found.probability),
        "present": list(found.present),
        "top": [{"label": labels[index], "probability": or_null(value)} for index, value in found.top(top)],
        "predicted_by": found.predicted_by,
        "out_of_distribution": found.out_of_distribution,
        "payload_bytes": found.payload_bytes,
        "obfuscate_ms": round(found.obfuscate_ms, 3),
        "round_trip_ms": round(found.round_trip_ms, 3),
    }
