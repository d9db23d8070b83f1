"""Endpoints by their address: over HTTP, or over gRPC, whose packages are loaded only when needed."""

from __future__ import annotations

from typing import Unpack

from sfumato.device.endpoint import Endpoint
from sfumato.device.http_endpoint import HttpEndpoint
from sfumato.device.transport import ConnectionOptions
from sfumato.errors import EndpointError

ENCODINGS = ("binary", "json")


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
    return HttpEndpoint(server_url, encoding=encoding, **options)
