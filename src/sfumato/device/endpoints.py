"""Endpoints of the Open Inference Protocol by their address: over HTTP, or over gRPC, which is loaded when needed."""

from __future__ import annotations

import copy
import time
from typing import Protocol, Self, Unpack
from urllib.parse import quote

from sfumato.device.blocking import finished
from sfumato.device.predictions import InferResult, check_origin, new_request_id
from sfumato.device.transport import CallOptions, ConnectionOptions, Transport
from sfumato.device.urllib3_transport import Urllib3Transport
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


class AsyncEndpoint(Protocol):
    """The interface of an endpoint. All but `close` raise kinds of `EndpointError`.

    Over a blocking transport, its coroutines never suspend; see `blocking`.
    """

    server: str

    async def check_ready(self) -> None:
        """Raise if the server does not take requests."""

    async def metadata(self, model: str) -> ModelMetadata:
        """Return what the server says of a model."""

    async def infer(self, model: str, tensor: Tensor, output_name: str | None) -> InferResult:
        """Send one tensor and ask for one output, or, with None, for all.

        A response that is malformed, or to another request, closes the connections.
        """

    async def reconnect(self) -> None:
        """Close the connections; new ones are made as they are needed."""

    async def close(self) -> None:
        """Close the connections for good; further calls raise an `EndpointError`."""

    def with_options(self, options: CallOptions) -> Self:
        """Return an endpoint with other options over the same connections."""


class Endpoint:
    """An endpoint, for callers that wait for it; the methods are those of `AsyncEndpoint`."""

    def __init__(self, endpoint: AsyncEndpoint) -> None:
        self._endpoint = endpoint
        self.server = endpoint.server

    def check_ready(self) -> None:
        """Raise if the server does not take requests."""
        finished(self._endpoint.check_ready())

    def metadata(self, model: str) -> ModelMetadata:
        """Return what the server says of a model."""
        return finished(self._endpoint.metadata(model))

    def infer(self, model: str, tensor: Tensor, output_name: str | None) -> InferResult:
        """Send one tensor and ask for one output, or, with None, for all."""
        return finished(self._endpoint.infer(model, tensor, output_name))

    def close(self) -> None:
        """Close the connections."""
        finished(self._endpoint.close())


def open_endpoint(server_url: str, *, encoding: str | None = None, **options: Unpack[ConnectionOptions]) -> Endpoint:
    """Return the endpoint at an address, for callers that wait for it. See `blocking_endpoint`."""
    return Endpoint(blocking_endpoint(server_url, encoding=encoding, **options))


def blocking_endpoint(
    server_url: str, *, encoding: str | None = None, **options: Unpack[ConnectionOptions]
) -> AsyncEndpoint:
    """Return the endpoint at an address, whose coroutines never suspend; connect to nothing yet.

    Args:
        server_url: `http://`, `https://`, `grpc://` or `grpcs://`, then host and port.
        encoding: how tensors are sent over HTTP: "binary", or "json", which takes about five times as many bytes; by
            default what the server says that it takes.
        options: see `ConnectionOptions`.

    Raises:
        EndpointError: the address or an option cannot be used, or what gRPC needs is not installed.
    """
    _check_encoding(encoding)
    if is_grpc(server_url):
        if encoding == "json":
            raise EndpointError("gRPC has no JSON; leave the encoding out, or give an http:// or https:// address")
        from sfumato.device.grpc_endpoint import GrpcEndpoint

        return GrpcEndpoint(server_url, **options)
    return HttpEndpoint(Urllib3Transport(server_url, **options), encoding=encoding)


def is_grpc(server_url: str) -> bool:
    """Return whether an address is one of gRPC."""
    return server_url.lower().startswith(("grpc://", "grpcs://"))


def _check_encoding(encoding: str | None) -> None:
    if encoding not in (None, *ENCODINGS):
        raise EndpointError(f"encoding must be one of {', '.join(ENCODINGS)}, got {encoding!r}")


class HttpEndpoint(AsyncEndpoint):
    """An endpoint over HTTP.

    Args:
        transport: to the server.
        encoding: see `blocking_endpoint`.

    Raises:
        EndpointError: there is no such encoding.
    """

    def __init__(self, transport: Transport, *, encoding: str | None = None) -> None:
        _check_encoding(encoding)
        self._transport = transport
        self._encoding = encoding
        self.server = transport.server

    async def check_ready(self) -> None:
        """See `AsyncEndpoint`."""
        await self._transport.get(paths.READY)

    async def metadata(self, model: str) -> ModelMetadata:
        """See `AsyncEndpoint`."""
        reply = await self._transport.get(_path(model))
        try:
            return decode_metadata(reply.body)
        except WireError as error:
            raise EndpointResponseInvalid(f"the metadata of {self.server} is malformed: {error}") from None

    async def infer(self, model: str, tensor: Tensor, output_name: str | None) -> InferResult:
        """See `AsyncEndpoint`."""
        if self._encoding is None:
            self._encoding = await self._stated_encoding()
        binary = self._encoding == "binary"
        request = InferRequest(
            inputs=(tensor,),
            outputs=() if output_name is None else (RequestedOutput(output_name, binary=binary or None),),
            id=new_request_id(),
            parameters={"binary_data_output": True} if binary and output_name is None else {},
        )
        encoded = encode_request(request, binary=binary)
        start = time.perf_counter()
        reply = await self._transport.request("POST", f"{_path(model)}/infer", encoded.body, encoded.headers())
        round_trip_ms = (time.perf_counter() - start) * 1000
        try:
            response = decode_response(reply.body, reply.headers.get(HEADER_LENGTH.lower()))
            check_origin(response, request_id=request.id, model=model)
        except (WireError, EndpointResponseInvalid) as error:
            await self.reconnect()
            raise EndpointResponseInvalid(f"{self.server}: {error}") from None
        return InferResult(response, len(encoded.body), round_trip_ms)

    async def reconnect(self) -> None:
        """See `AsyncEndpoint`."""
        await self._transport.reconnect()

    async def close(self) -> None:
        """See `AsyncEndpoint`."""
        await self._transport.close()

    def with_options(self, options: CallOptions) -> Self:
        """See `AsyncEndpoint`."""
        other = copy.copy(self)
        other._transport = self._transport.with_options(options)
        return other

    async def _stated_encoding(self) -> str:
        """Return "binary", an extension of the protocol, where the server lists it; elsewhere "json"."""
        try:
            reply = await self._transport.get(paths.SERVER)
        except EndpointRefused:
            return "json"  # it does not say
        try:
            return "binary" if BINARY_EXTENSION in decode_extensions(reply.body) else "json"
        except WireError as error:
            raise EndpointResponseInvalid(f"what {self.server} says of itself is malformed: {error}") from None


def _path(model: str) -> str:
    return paths.MODEL.format(model=quote(model, safe=""))
