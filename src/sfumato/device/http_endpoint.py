"""An endpoint over HTTP."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from sfumato.device.endpoint import Asked
from sfumato.device.transport import Transport
from sfumato.errors import EndpointAnswerInvalid, EndpointRefused, WireError
from sfumato.wire import (
    HEADER_LENGTH,
    InferRequest,
    ModelMetadata,
    RequestedOutput,
    Tensor,
    decode_extensions,
    decode_metadata,
    decode_response,
    encode_request,
)

BINARY_EXTENSION = "binary_tensor_data"


class HttpEndpoint:
    """An endpoint over HTTP.

    Args:
        server_url: as for `Transport`.
        encoding: as for `open_endpoint`.
        options: as for `Transport`.

    Raises:
        EndpointError: as for `Transport`.
    """

    def __init__(self, server_url: str, *, encoding: str | None = None, **options: Any) -> None:
        self._transport = Transport(server_url, **options)
        self._encoding = encoding
        self.server = self._transport.server

    def check_ready(self) -> None:
        """See `Endpoint`."""
        self._transport.get("/v2/health/ready")

    def metadata(self, model: str) -> ModelMetadata:
        """See `Endpoint`."""
        reply = self._transport.get(_path(model))
        try:
            return decode_metadata(reply.body)
        except WireError as error:
            raise EndpointAnswerInvalid(f"the metadata of {self.server} is malformed: {error}") from None

    def infer(self, model: str, given: Tensor, output_name: str | None) -> Asked:
        """See `Endpoint`."""
        if self._encoding is None:
            self._encoding = self._stated_encoding()
        binary = self._encoding == "binary"
        request = InferRequest(
            inputs=(given,),
            outputs=() if output_name is None else (RequestedOutput(output_name, binary=binary or None),),
            parameters={"binary_data_output": True} if binary and output_name is None else {},
        )
        encoded = encode_request(request, binary=binary)
        start = time.perf_counter()
        reply = self._transport.request("POST", f"{_path(model)}/infer", encoded.body, encoded.headers())
        round_trip_ms = (time.perf_counter() - start) * 1000
        try:
            response = decode_response(reply.body, reply.headers.get(HEADER_LENGTH.lower()))
        except WireError as error:
            raise EndpointAnswerInvalid(f"the answer of {self.server} is malformed: {error}") from None
        return Asked(response, len(encoded.body), round_trip_ms)

    def close(self) -> None:
        """See `Endpoint`."""
        self._transport.close()

    def _stated_encoding(self) -> str:
        """Bytes are an extension of the protocol, sent where the server lists it; elsewhere numbers as text."""
        try:
            reply = self._transport.get("/v2")
        except EndpointRefused:
            return "json"  # it does not tell
        try:
            return "binary" if BINARY_EXTENSION in decode_extensions(reply.body) else "json"
        except WireError as error:
            raise EndpointAnswerInvalid(f"what {self.server} says of itself is malformed: {error}") from None


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"
