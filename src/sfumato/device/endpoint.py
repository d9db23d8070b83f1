"""An endpoint of the Open Inference Protocol, whichever way it is reached: see `connect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sfumato.wire import InferResponse, ModelMetadata, Tensor


@dataclass(frozen=True)
class InferResult:
    """A response, the length of the request's body, and the time from its first byte to the response's last."""

    response: InferResponse
    payload_bytes: int
    round_trip_ms: float


class Endpoint(Protocol):
    """The interface of an endpoint. All but `close` raise kinds of `EndpointError`."""

    server: str

    def check_ready(self) -> None:
        """Raise if the server does not take requests."""

    def metadata(self, model: str) -> ModelMetadata:
        """Return what the server says of a model."""

    def infer(self, model: str, tensor: Tensor, output_name: str | None) -> InferResult:
        """Send one tensor and ask for one output, or, with None, for all."""

    def close(self) -> None:
        """Close the connections."""
