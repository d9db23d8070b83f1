"""An endpoint of the Open Inference Protocol, whichever way it is reached: see `connect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sfumato.wire import InferResponse, ModelMetadata, Tensor


@dataclass(frozen=True)
class Asked:
    """A question that was answered.

    Attributes:
        response: the answer.
        payload_bytes: the request's body.
        round_trip_ms: from the request's first byte to the answer's last, retries included.
    """

    response: InferResponse
    payload_bytes: int
    round_trip_ms: float


class Endpoint(Protocol):
    """What a client needs of an endpoint. All but `close` raise the kinds of `EndpointError`."""

    server: str

    def check_ready(self) -> None:
        """Raises if the server does not take requests."""

    def metadata(self, model: str) -> ModelMetadata:
        """What the server says of a model."""

    def infer(self, model: str, given: Tensor, output_name: str | None) -> Asked:
        """Sends one tensor; asks for one output, or, with None, for all."""

    def close(self) -> None:
        """Closes the connections."""
