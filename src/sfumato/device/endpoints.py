"""Endpoints of the Open Inference Protocol by their address: over HTTP, or over gRPC, which is loaded when needed."""

from __future__ import annotations

import time
from typing import Protocol, Unpack
from urllib.parse import quote

from sfumato.device.predictions import InferResult, check_origin, new_request_id
from sfumato.device.transport import ConnectionOptions, Transport
from sfumato.errors import EndpointError, EndpointRefused, EndpointResponseInvalid, WireError
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
    paths,
)

ENCODINGS = ("binary", "json")
BINARY_EXTENSION = "binary_tensor_data"


class Endpoint(Protocol):
    """The interface of an endpoint. All but `close` raise kinds of `EndpointError`."""

    server: str

    def check_ready(self) -> None:
        """Raise if the server does not take requests."""

    def metadata(self, model: str) -> ModelMetadata:
        """Return what the server says of a model."""

    def infer(self, model: str, tensor: Tensor, output_name: str | None) -> InferResult:
        """Send one tensor and ask for one output, or, with None, for all.

        A response that is malformed, or to another request, closes the connections.
        """

    def reconnect(self) -> None:
        """Close the connections; new ones are made as they are needed."""

    def close(self) -> None:
        """Close the connections."""


def open_endpoint(server_url: str, *, encoding: str | None = None, **options: Unpack[ConnectionOptions]) -> Endpoint:
    """Return the endpoint at an address; connect to nothing yet.

    Args:
        server_url: `http://`, `https://`, `grpc://` or `grpcs://`, then host and port.
        encoding: how tensors are sent over HTTP: "binary", or "json", which takes about five times as many bytes; by
            default what the server says that it takes.
        options: see `ConnectionOptions`.

    Raises:
        EndpointError: the address or an option cannot be used, or what gRPC needs is not installed.
    """
    if encoding not in (None, *ENCODINGS):
        raise EndpointError(f"encoding must be one of {', '.join(ENCODINGS)}, got {encoding!r}")
    if server_url.lower().startswith(("grpc://", "grpcs://")):
        if encoding == "json":
            raise EndpointError("gRPC has no JSON; leave the encoding out, or give an http:// or https:// address")
        from sfumato.device.grpc_endpoint import GrpcEndpoint

        return GrpcEndpoint(server_url, **options)
    return _HttpEndpoint(server_url, encoding=encoding, **options)


class _HttpEndpoint(Endpoint):
    """An endpoint over HTTP; see `open_endpoint`."""

    def __init__(self, server_url: str, *, encoding: str | None = None, **options: Unpack[ConnectionOptions]) -> None:
        self._transport = Transport(server_url, **options)
        self._encoding = encoding
        self.server = self._transport.server

    def check_ready(self) -> None:
        self._transport.get(paths.READY)

    def metadata(self, model: str) -> ModelMetadata:
        reply = self._transport.get(_path(model))
        try:
            return decode_metadata(reply.body)
        except WireError as error:
            raise EndpointResponseInvalid(f"the metadata of {self.server} is malformed: {error}") from None

    def infer(self, model: str, tensor: Tensor, output_name: str | None) -> InferResult:
        if self._encoding is None:
            self._encoding = self._stated_encoding()
        binary = self._encoding == "binary"
        request = InferRequest(
            inputs=(tensor,),
            outputs=() if output_name is None else (RequestedOutput(output_name, binary=binary or None),),
            id=new_request_id(),
            parameters={"binary_data_output": True} if binary and output_name is None else {},
        )
        encoded = encode_request(request, binary=binary)
        start = time.perf_counter()
        reply = self._transport.request("POST", f"{_path(model)}/infer", encoded.body, encoded.headers())
        round_trip_ms = (time.perf_counter() - start) * 1000
        try:
            response = decode_response(reply.body, reply.headers.get(HEADER_LENGTH.lower()))
            check_origin(response, request_id=request.id, model=model)
        except (WireError, EndpointResponseInvalid) as error:
            self.reconnect()
            raise EndpointResponseInvalid(f"{self.server}: {error}") from None
        return InferResult(response, len(encoded.body), round_trip_ms)

    def reconnect(self) -> None:
        self._transport.close()

    def close(self) -> None:
        self._transport.close()

    def _stated_encoding(self) -> str:
        """Return "binary", an extension of the protocol, where the server lists it; elsewhere "json"."""
        try:
            reply = self._transport.get(paths.SERVER)
        except EndpointRefused:
            return "json"  # it does not say
        try:
            return "binary" if BINARY_EXTENSION in decode_extensions(reply.body) else "json"
        except WireError as error:
            raise EndpointResponseInvalid(f"what {self.server} says of itself is malformed: {error}") from None


def _path(model: str) -> str:
    return paths.MODEL.format(model=quote(model, safe=""))
