"""The blocking client for the Open Inference Protocol, and the methods that it shares with the one for image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Self, TypeVar

from sfumato.device.blocking import finished
from sfumato.device.client_base import BaseClient, EndpointStatus, FingerprintMatch, FingerprintWarning, ProtocolClient
from sfumato.device.concurrent import IN_FLIGHT, in_order
from sfumato.device.endpoint_binding import Plan
from sfumato.device.endpoints import AsyncEndpoint, blocking_endpoint
from sfumato.device.image import ImageSource
from sfumato.device.predictions import Prediction
from sfumato.device.transport import ConnectionOptions
from sfumato.wire import ModelMetadata

__all__ = ["BlockingClient", "Client", "EndpointStatus", "FingerprintMatch", "FingerprintWarning"]

R = TypeVar("R")


class BlockingClient(BaseClient):
    """The methods of clients that wait for the endpoint; several threads may use one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, each once no other thread is using it. Nothing more is sent afterwards."""
        finished(self._disconnect())

    def classify(self, source: ImageSource) -> Prediction:
        """Classify one image. See `classify_batch`."""
        return finished(self._classify_group([source]))[0]

    def classify_batch(self, sources: Iterable[ImageSource], *, batch_size: int = 16) -> list[Prediction]:
        """Classify images in groups. No request is made for a group that is handled on-device altogether.

        Args:
            sources: whatever `load_image` takes.
            batch_size: images in one group.

        Returns:
            One prediction per image, in order.

        Raises:
            ImageError: an image cannot be used.
            BundleError: the obfuscator failed, did not hide the image, gave no usable on-device prediction, or gave
                what this endpoint cannot take.
            EndpointError: one of its kinds; see `sfumato.errors`.
        """
        return finished(self._classify_all(sources, batch_size))

    def classify_many(self, sources: Iterable[ImageSource], *, in_flight: int = IN_FLIGHT) -> Iterator[Prediction]:
        """Classify images as they come, several at the same time, so that round trips overlap.

        For asyncio there is `AsyncClient`.

        Args:
            sources: whatever `load_image` takes; may never end. A thread of its own reads them.
            in_flight: images that may be in progress, or done and not yet taken from the iterator.

        Returns:
            The predictions, in order. The first error ends it, and no further image is begun.

        Raises:
            EndpointError: `in_flight` is not positive; and what `classify` raises, at the image's place.
        """
        return in_order(self.classify, sources, in_flight=in_flight)

    def classify_locally(self, source: ImageSource) -> Prediction | None:
        """Return the on-device prediction if it is final; None if the image has to be sent. Send nothing.

        Raises:
            ImageError: the image cannot be used.
            BundleError: as in `classify_batch`.
        """
        return finished(self._classify_on_device(source))

    async def _compute(self, work: Callable[[], R]) -> R:
        return work()

    async def _wait_for(self, work: Callable[[], R]) -> R:
        return work()


class Client(BlockingClient, ProtocolClient):
    """Classifies images at an endpoint that never sees them; images of one group go in one request.

    Args:
        server_url: the endpoint's address, such as `https://host:port`, or `grpcs://host:port` with the extra `[grpc]`;
            `http` and `grpc` are the same without TLS. None for a bundle that predicts on the device alone.
        bundle: an obfuscator bundle, or its folder; or without an endpoint a classifier's: then nothing is ever sent.
        model: the model's name at the endpoint; by default the bundle's classifier, or its split form.
        input_name: the model's input, for servers whose metadata lists none (KServe's SDK); by default "input".
        datatype: the payload's datatype: "FP32", "FP16", "FP64", or "UINT8" if the bundle's output is 8-bit; by
            default the one that the model's metadata states.
        encoding: how tensors are sent over HTTP: "binary", or "json", which takes about five times as many bytes; by
            default "binary" where the server says that it takes it.
        threads: threads for the obfuscator.
        providers: execution providers for the bundle, the preferred one first; see `Obfuscator`.
        gate: let the bundle's gate, if it has one, handle images on-device. If not, everything is sent, obfuscated.
        split: send codes of a few bytes to a model that begins with the bundle's decoder, as `sfumato serve --decoder`
            has one.
        allow_recognisable: send payloads that show the image, of a bundle that declares itself a baseline; see
            `Obfuscator`.
        connection: token, timeout_s, retries, ca_file, cert_file, key_file, proxy, allow_insecure_token: see
            `ConnectionOptions`.

    Attributes:
        obfuscator: runs on the device.
        bundle: the obfuscator's.
        on_device: whether the bundle predicts on the device alone.
        providers: the execution providers that run the bundle.
        model: the model's name at the endpoint.
        gate_enabled: whether images may be handled on-device: the bundle has a gate, and it is used, or it predicts on
            the device alone.
        fingerprint: whether the endpoint serves the classifier the obfuscator was trained for, as `EndpointStatus` has
            it; None as long as it was not asked.
        datatype: the payload's datatype; None as long as the endpoint was not asked and none was given.

    Raises:
        BundleError: the bundle cannot be used, or not with an endpoint, or not without one.
        EndpointError: the address, the token, the file, the datatype or the encoding cannot be used, the token would
            be sent in the clear, or what gRPC needs is not installed.
    """

    def _open(self, server_url: str, encoding: str | None, connection: ConnectionOptions) -> AsyncEndpoint:
        return blocking_endpoint(server_url, encoding=encoding, **connection)

    def check(self) -> EndpointStatus:
        """Ask whether the endpoint is ready, and for the right classifier. Send nothing of any image.

        Raises:
            EndpointUnreachable: no connection, or no response in time.
            EndpointRefused: it has no such model, or does not accept the token.
            EndpointResponseInvalid: its metadata is malformed, or of a model that cannot take these images.
        """
        return finished(self._status())

    def check_ready(self) -> None:
        """Ask whether the endpoint is ready.

        Raises:
            EndpointError: it is not, or it cannot be reached.
        """
        finished(self._ask_ready())

    def metadata(self) -> ModelMetadata:
        """Return what the endpoint says of the model; it is asked once.

        Raises:
            EndpointError: one of its kinds.
        """
        return finished(self._ask_metadata())

    def plan(self) -> Plan:
        """Return how to ask the model, decided once. Several threads may do so at once.

        Raises:
            EndpointError: one of its kinds; `EndpointResponseInvalid` if the model cannot take the payload.
        """
        return finished(self._make_plan())
