"""The client for endpoints that take image files. It fails closed, as `Client` does.

There is one function that sends (`FileClient._send`), and it takes 8-bit obfuscated images only, which it encodes
afresh. Such endpoints do not say what they serve, so nothing can be checked before an image is sent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from sfumato.artifacts.bundle import Bundle
from sfumato.device.concurrent import IN_FLIGHT, in_order
from sfumato.device.file_responses import AnswerPlace, read_file_answer
from sfumato.device.gate_client import answer_at_home, answer_group
from sfumato.device.image import ImageSource
from sfumato.device.image_files import FileFormat, Request, Style, encode_image
from sfumato.device.obfuscator import ObfuscatedImage, Obfuscator
from sfumato.device.predictions import Answer
from sfumato.device.transport import Transport
from sfumato.errors import EndpointAnswerInvalid, EndpointError


class FileClient:
    """Classifies images at an endpoint that takes image files and answers in JSON.

    Args:
        url: the full address that files are sent to, such as `https://host/classify`.
        bundle: an obfuscator bundle, or its folder, whose drawings are 8-bit images, or may be rounded to such.
        style: "form" for a multipart form, "body" for the file as it is, "json" for base64 within JSON.
        field: the form's field, or the JSON object's key.
        template: what the JSON is instead of an object with one key: any value that JSON knows, in whose strings
            "{base64}" stands for the file and "{type}" for its media type.
        file_format: "png", "webp" (lossless), or "smallest": what is smaller for each image.
        answer: where the answer lies in the JSON: keys and places of lists, with dots between, such as
            "responses.0.labels"; "" is the whole. `sfumato.device.file_responses` says what may lie there.
        label_key: what the objects there call the label.
        score_key: what they call the score.
        rounding: round drawings in [0, 1] to 8 bits; otherwise those that are no 8-bit images are refused.
        token: the bearer token, if the endpoint wants one.
        timeout_s: for connecting, and again for the answer of each attempt.
        retries: further attempts after a broken connection, or status 429, 500, 502, 503 or 504.
        ca_file: PEM file with the authorities to trust instead of the system's.
        allow_insecure_token: send the token over plain HTTP to another machine, where others can read it.
        threads: threads for the obfuscator.
        gate: let the bundle's gate, if it has one, keep images at home whose answer on the device is final.

    Attributes:
        bundle: the obfuscator's.
        keeps: whether images may stay at home: the bundle has a gate, and it is used.

    Raises:
        BundleError: the bundle cannot be used.
        EndpointError: the URL, the token, a file or the way of asking cannot be used, or the token would travel in the
            open.
    """

    def __init__(
        self,
        url: str,
        bundle: Bundle | str | os.PathLike[str],
        *,
        style: Style = "form",
        field: str = "file",
        template: Any = None,
        file_format: FileFormat = "smallest",
        answer: str = "",
        label_key: str = "label",
        score_key: str = "score",
        rounding: bool = False,
        token: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 2,
        ca_file: str | os.PathLike[str] | None = None,
        allow_insecure_token: bool = False,
        threads: int = 1,
        gate: bool = True,
    ) -> None:
        if file_format not in ("smallest", "png", "webp"):
            raise EndpointError(f'the file format is "smallest", "png" or "webp"; got {file_format!r}')
        self._request = Request(style, field, template)
        self._file_format: FileFormat = file_format
        self._place = AnswerPlace(answer, label_key, score_key)
        self._obfuscator = Obfuscator(bundle, threads=threads, eight_bit="rounded" if rounding else "exact")
        self.bundle = self._obfuscator.bundle
        self.keeps = gate and self.bundle.gate is not None
        # The transport takes servers and drops a slash at the end, which for an address of one path can matter.
        self._path = "/" if url.endswith("/") else ""
        self._transport = Transport(
            url,
            token=token,
            timeout_s=timeout_s,
            retries=retries,
            ca_file=ca_file,
            allow_insecure_token=allow_insecure_token,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def classify(self, source: ImageSource) -> Answer:
        """Classifies one image; one that may stay at home is answered here, and nothing is sent.

        Args:
            source: whatever `load_image` takes.

        Raises:
            ImageError: the image cannot be used.
            BundleError: the obfuscator failed, did not hide the image, drew what no 8-bit file can hold, or gave no
                usable answer of its own.
            EndpointError: one of its kinds; see `sfumato.errors`.
        """
        (answer,) = answer_group(self._obfuscator, [source], keeps=self.keeps, send=self._send)
        return answer

    def classify_batch(self, sources: Iterable[ImageSource]) -> list[Answer]:
        """Classifies images, one request for each that has to be sent. Raises as `classify` does."""
        return [self.classify(source) for source in sources]

    def classify_many(self, sources: Iterable[ImageSource], *, in_flight: int = IN_FLIGHT) -> Iterator[Answer]:
        """Classifies images as they come, several underway at once; see `Client.classify_many`."""
        return in_order(self.classify, sources, in_flight=in_flight)

    def classify_at_home(self, source: ImageSource) -> Answer | None:
        """The device's own answer if it is final; None if the image has to be sent. Sends nothing.

        Raises:
            ImageError: the image cannot be used.
            BundleError: as in `classify`.
        """
        return answer_at_home(self._obfuscator, source) if self.keeps else None

    def _send(self, images: Sequence[ObfuscatedImage], *, obfuscate_ms: float) -> list[Answer]:
        """The only way out of the device."""
        return [self._send_one(image, obfuscate_ms) for image in images]

    def _send_one(self, image: ObfuscatedImage, obfuscate_ms: float) -> Answer:
        if not isinstance(image, ObfuscatedImage) or image.tensor.ndim != 3 or image.tensor.dtype != np.uint8:
            raise TypeError("only obfuscated images of 8 bits may be sent")
        body, headers = self._request.body(encode_image(image.tensor, self._file_format))
        start = time.perf_counter()
        reply = self._transport.request("POST", self._path, body, {"Accept": "application/json", **headers})
        round_trip_ms = (time.perf_counter() - start) * 1000
        labels = self.bundle.labels
        try:
            index, probabilities = read_file_answer(reply.body, self._place, labels)
        except EndpointAnswerInvalid as error:
            said = self._transport.without_token(str(error))
            raise EndpointAnswerInvalid(f"{self._transport.server}: {said}") from None
        return Answer(
            label=labels[index],
            index=index,
            probability=probabilities[index],
            probabilities=probabilities,
            payload_bytes=len(body),
            obfuscate_ms=obfuscate_ms,
            round_trip_ms=round_trip_ms,
            answered_by="cloud",
        )
