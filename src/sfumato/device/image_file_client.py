"""The client for endpoints that take image files. It fails closed: see `client`.

Such endpoints do not say what they serve, so nothing can be checked before an image is sent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.execution_providers import CPU
from sfumato.device.client import BlockingClient
from sfumato.device.file_responses import ResponseFormat, read_file_response
from sfumato.device.image import EightBit
from sfumato.device.image_files import FileFormat, ImageFile, Request, Style, encode_image
from sfumato.device.obfuscator import ObfuscatedImage, Obfuscator
from sfumato.device.predictions import Prediction
from sfumato.device.transport import CallOptions, ConnectionOptions
from sfumato.device.urllib3_transport import Urllib3Transport
from sfumato.errors import EndpointError, EndpointResponseInvalid


class FileClient(BlockingClient):
    """Classifies images at an endpoint that takes image files and responds in JSON; one request for each image.

    Args:
        url: the full address that files are sent to, such as `https://host/classify`.
        bundle: an obfuscator bundle, or its folder, whose output is an 8-bit image, or may be rounded to one.
        style: "form" for a multipart form, "body" for the file as it is, "json" for base64 within JSON.
        field: the form's field, or the JSON object's key.
        template: what the JSON is instead of an object with one key: any value that JSON knows, in whose strings
            "{base64}" is replaced by the file and "{type}" by its media type.
        file_format: "png", "webp" (lossless), or "smallest": what is smaller for each image.
        prediction_path: where the prediction lies in the JSON: keys and list indices from 0, with dots between, such as
            "responses.0.labels"; "" is the whole. `read_file_response` says what may lie there.
        label_key: what the objects there call the label.
        score_key: what they call the score.
        rounding: round outputs in [0, 1] to 8 bits; otherwise those that are no 8-bit images are refused.
        threads: threads for the obfuscator.
        providers: execution providers for it, the preferred one first; see `Obfuscator`.
        gate: let the bundle's gate, if it has one, handle images on-device.
        allow_recognisable: send payloads that show the image, of a bundle that declares itself a baseline; see
            `Obfuscator`.
        connection: token, timeout_s, retries, ca_file, cert_file, key_file, proxy, allow_insecure_token: see
            `ConnectionOptions`.

    Attributes:
        bundle: the obfuscator's.
        gate_enabled: whether images may be handled on-device: the bundle has a gate, and it is used.

    Raises:
        BundleError: the bundle cannot be used.
        EndpointError: the URL, the token, a file or the way of asking cannot be used, or the token would be sent in
            the clear.
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
        prediction_path: str = "",
        label_key: str = "label",
        score_key: str = "score",
        rounding: bool = False,
        threads: int = 1,
        providers: Sequence[str] = CPU,
        gate: bool = True,
        allow_recognisable: bool = False,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        if file_format not in ("smallest", "png", "webp"):
            raise EndpointError(f'the file format is "smallest", "png" or "webp"; got {file_format!r}')
        self._request = Request(style, field, template)
        self._file_format: FileFormat = file_format
        self._response = ResponseFormat(prediction_path, label_key, score_key)
        eight_bit: EightBit = "rounded" if rounding else "exact"
        obfuscator = Obfuscator(
            bundle,
            threads=threads,
            eight_bit=eight_bit,
            providers=providers,
            allow_recognisable=allow_recognisable,
        )
        obfuscator.bundle.check_single_label("a client for image files")
        super().__init__(obfuscator, gate=gate)
        # The transport takes servers and drops a slash at the end, which for an address of one path can matter.
        self._path = "/" if url.endswith("/") else ""
        self._transport = Urllib3Transport(url, **connection)

    async def _disconnect(self) -> None:
        await self._transport.close()

    def _set_options(self, options: CallOptions) -> None:
        self._transport = self._transport.with_options(options)

    async def _transmit(self, images: Sequence[ObfuscatedImage], obfuscate_ms: float) -> list[Prediction]:
        if not all(image.tensor.ndim == 3 and image.tensor.dtype == np.uint8 for image in images):
            raise TypeError("only obfuscated images of 8 bits may be sent")
        return [
            await self._transmit_one(encode_image(image.tensor, self._file_format), obfuscate_ms) for image in images
        ]

    async def _transmit_one(self, file: ImageFile, obfuscate_ms: float) -> Prediction:
        body, headers = self._request.body(file)
        start = time.perf_counter()
        reply = await self._transport.request("POST", self._path, body, {"Accept": "application/json", **headers})
        round_trip_ms = (time.perf_counter() - start) * 1000
        labels = self.bundle.labels
        try:
            index, probabilities = read_file_response(reply.body, self._response, labels, self.bundle.class_map)
        except EndpointResponseInvalid as error:
            reason = self._transport.connection.without_token(str(error))
            raise EndpointResponseInvalid(f"{self._transport.server}: {reason}") from None
        return Prediction.of(
            probabilities,
            labels,
            index=index,
            predicted_by="cloud",
            payload_bytes=len(body),
            obfuscate_ms=obfuscate_ms,
            round_trip_ms=round_trip_ms,
        )
