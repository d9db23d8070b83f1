"""The client for the Open Inference Protocol, and what it shares with the one for image files.

There is one way out of the device, `BaseClient._send`, and it takes obfuscated images only. When anything goes
wrong, an error is raised; no path sends the image itself instead. With a gate in the bundle, an image whose on-device
prediction is final is not sent, and if none is left to send, no request is made.
"""

from __future__ import annotations

import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self, Unpack, final

import numpy as np

from sfumato.artifacts.bundle import DECODER_ONNX, Bundle, split_name
from sfumato.device.concurrent import IN_FLIGHT, in_order
from sfumato.device.deadline import deadline
from sfumato.device.endpoint_binding import Plan, as_datatype, make_plan, payload_from
from sfumato.device.endpoints import Endpoint, open_endpoint
from sfumato.device.image import ImageSource
from sfumato.device.image_folders import in_groups
from sfumato.device.obfuscator import Decision, ObfuscatedImage, Obfuscator
from sfumato.device.on_device import NoEndpoint, OnDeviceClassifier
from sfumato.device.predictions import Prediction, read_predictions
from sfumato.device.transport import TIMEOUT_S, ConnectionOptions, printable
from sfumato.errors import (
    BundleError,
    EndpointError,
    EndpointFailed,
    EndpointModelNotFound,
    EndpointRefused,
    EndpointResponseInvalid,
)
from sfumato.wire import ModelMetadata, Tensor

FingerprintMatch = Literal["match", "differs", "unknown"]


class FingerprintWarning(UserWarning):
    """The endpoint serves another classifier than the one the obfuscator was trained for."""


@dataclass(frozen=True)
class EndpointStatus:
    """The status of an endpoint.

    Attributes:
        ready: whether it takes requests.
        model: the model that was asked for.
        platform: what runs it there, "" if it does not say.
        fingerprint: whether it is the classifier the obfuscator was trained for; "unknown" if it does not say.
        reason: what it said when it was not ready.
    """

    ready: bool
    model: str
    platform: str
    fingerprint: FingerprintMatch
    reason: str = ""


class BaseClient(ABC):
    """Classifies images at an endpoint that never sees them; see `Client` for the attributes."""

    def __init__(self, device: Obfuscator | OnDeviceClassifier, *, gate: bool) -> None:
        self._device = device
        self.bundle = device.bundle
        self.gate_enabled = gate and (self.on_device or self.bundle.gate is not None)

    @property
    def on_device(self) -> bool:
        """Whether the bundle predicts on the device alone, so that nothing is ever sent."""
        return isinstance(self._device, OnDeviceClassifier)

    @property
    def obfuscator(self) -> Obfuscator:
        """The obfuscator on the device.

        Raises:
            BundleError: the bundle predicts on the device alone.
        """
        if isinstance(self._device, OnDeviceClassifier):
            raise BundleError(f"{self.bundle.path} predicts on the device alone: it has no obfuscator")
        return self._device

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    def classify(self, source: ImageSource) -> Prediction:
        """Classify one image. See `classify_batch`."""
        return self.classify_batch([source], batch_size=1)[0]

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
        if batch_size < 1:
            raise EndpointError(f"batch_size must be at least 1, got {batch_size}")
        predictions: list[Prediction] = []
        for group in in_groups(sources, batch_size):
            predictions += self._classify_group(group)
        return predictions

    def classify_many(self, sources: Iterable[ImageSource], *, in_flight: int = IN_FLIGHT) -> Iterator[Prediction]:
        """Classify images as they come, several at the same time, so that round trips overlap.

        In asyncio, `await asyncio.to_thread(client.classify, image)`: a client may be used from several threads.

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
        if not self.gate_enabled:
            return None
        start = time.perf_counter()
        (decision,) = self._device.decide_batch([source])
        return self._local(decision, (time.perf_counter() - start) * 1000)

    def _classify_group(self, sources: Sequence[ImageSource]) -> list[Prediction]:
        start = time.perf_counter()
        decisions = self._device.decide_batch(sources, gate=self.gate_enabled)
        obfuscate_ms = (time.perf_counter() - start) * 1000 / len(sources)
        to_send = [decision.obfuscated for decision in decisions if decision.obfuscated is not None]
        sent = iter(self._send(to_send, obfuscate_ms=obfuscate_ms) if to_send else ())
        return [self._local(decision, obfuscate_ms) or next(sent) for decision in decisions]

    def _local(self, decision: Decision, obfuscate_ms: float) -> Prediction | None:
        if decision.obfuscated is not None or decision.probabilities is None:
            return None
        labels = self.bundle.labels
        return Prediction.of(decision.probabilities, labels, predicted_by="device", obfuscate_ms=obfuscate_ms)

    @final
    def _send(self, images: Sequence[ObfuscatedImage], *, obfuscate_ms: float) -> list[Prediction]:
        """Send images: the only way out of the device. A `TypeError` for anything but obfuscated images."""
        if not all(isinstance(image, ObfuscatedImage) for image in images):
            raise TypeError("only obfuscated images may be sent")
        return self._transmit(images, obfuscate_ms)

    @abstractmethod
    def _transmit(self, images: Sequence[ObfuscatedImage], obfuscate_ms: float) -> list[Prediction]:
        """Return one prediction for each image, in order. Called by `_send` alone."""


class Client(BaseClient):
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

    def __init__(
        self,
        server_url: str | None,
        bundle: Bundle | str | os.PathLike[str],
        *,
        model: str | None = None,
        input_name: str | None = None,
        datatype: str | None = None,
        encoding: str | None = None,
        threads: int = 1,
        gate: bool = True,
        split: bool = False,
        allow_recognisable: bool = False,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        if server_url is None:
            super().__init__(_on_device(bundle, threads, sends=split or not gate), gate=gate)
        else:
            obfuscator = Obfuscator(bundle, threads=threads, split=split, allow_recognisable=allow_recognisable)
            super().__init__(obfuscator, gate=gate)
        self.model = model or (split_name(self.bundle.name) if split else self.bundle.name)
        self.fingerprint: FingerprintMatch | None = None
        self.datatype = datatype
        self._requested = {"input_name": input_name, "datatype": datatype}
        self._payload = payload_from(self.bundle, self._device.payload_shape, split=split)
        self._payload.check(datatype)
        self._metadata: ModelMetadata | None = None
        self._plan: Plan | None = None
        self._warned = False
        self._timeout_s = connection.get("timeout_s", TIMEOUT_S)
        self._endpoint: Endpoint = NoEndpoint()
        if server_url is not None:
            self._endpoint = open_endpoint(server_url, encoding=encoding, **connection)

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def check(self) -> EndpointStatus:
        """Ask whether the endpoint is ready, and for the right classifier. Send nothing of any image.

        Raises:
            EndpointUnreachable: no connection, or no response in time.
            EndpointRefused: it has no such model, or does not accept the token.
            EndpointResponseInvalid: its metadata is malformed, or of a model that cannot take these images.
        """
        with deadline(self._timeout_s):
            try:
                self.check_ready()
            except (EndpointFailed, EndpointRefused) as error:  # the protocol says "not ready" with a 4xx
                return EndpointStatus(False, self.model, platform="", fingerprint="unknown", reason=str(error))
            self.plan()  # raises if the model cannot take the payload
            metadata = self.metadata()
        return EndpointStatus(True, self.model, platform=metadata.platform, fingerprint=self._match(metadata))

    def check_ready(self) -> None:
        """Ask whether the endpoint is ready.

        Raises:
            EndpointError: it is not, or it cannot be reached.
        """
        self._endpoint.check_ready()

    def metadata(self) -> ModelMetadata:
        """Return what the endpoint says of the model; it is asked once.

        Raises:
            EndpointError: one of its kinds.
        """
        if self._metadata is None:
            try:
                self._metadata = self._endpoint.metadata(self.model)
            except EndpointModelNotFound as error:
                raise EndpointModelNotFound(
                    f"{error}; {self.model!r} was asked for, with the bundle {self.bundle.path}: give the bundle of an "
                    "obfuscator for a model that is served there (--bundle), or the model's name there (--model)"
                ) from None
            self.fingerprint = self._match(self._metadata)
        return self._metadata

    def _transmit(self, images: Sequence[ObfuscatedImage], obfuscate_ms: float) -> list[Prediction]:
        with deadline(self._timeout_s):
            return self._asked(images, obfuscate_ms)

    def _asked(self, images: Sequence[ObfuscatedImage], obfuscate_ms: float) -> list[Prediction]:
        plan = self.plan()
        if self.fingerprint == "differs" and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._endpoint.server} serves another classifier as {self.model!r} than the one this obfuscator "
                "was trained for; its predictions may be incorrect",
                FingerprintWarning,
                stacklevel=7,
            )
        tensors = np.stack([image.tensor for image in images])
        tensor = Tensor(plan.input_name, as_datatype(tensors, plan.datatype, self.bundle.preprocessing))
        result = self._endpoint.infer(self.model, tensor, plan.output_name)
        self._check_version(result.response.model_version, plan)
        return read_predictions(
            result,
            output_name=plan.output_name,
            count=len(images),
            labels=self.bundle.labels,
            class_map=self.bundle.class_map,
            obfuscate_ms=obfuscate_ms,
        )

    def _check_version(self, version: str, plan: Plan) -> None:
        """Ask for the metadata anew if another version responded than it names: the server may have loaded one since.

        Raises:
            EndpointError: it does not name this version now either, or the version takes or gives something else.
        """
        named = self.metadata().versions
        if not version or not named or version in named:
            return
        self._metadata = self._plan = None
        if version not in self.metadata().versions or self.plan() != plan:
            self._endpoint.reconnect()
            stated = printable(", ".join(self.metadata().versions)) or "none"
            raise EndpointResponseInvalid(
                f"the response is of version {printable(version)!r} of the model {self.model!r}; "
                f"{self._endpoint.server} has {stated}; the connection was closed"
            )

    def plan(self) -> Plan:
        """Return how to ask the model, decided once. Several threads may do so at once.

        Raises:
            EndpointError: one of its kinds; `EndpointResponseInvalid` if the model cannot take the payload.
        """
        if self._plan is None:
            plan = make_plan(self.metadata(), self._payload, **self._requested)
            self.datatype, self._plan = plan.datatype, plan
        return self._plan

    def _match(self, metadata: ModelMetadata) -> FingerprintMatch:
        if self._device.split and self._decodes_these_codes(metadata):
            return "match"  # whatever the classifier: the decoder before it was made for both
        served = metadata.parameters.get("fingerprint")
        if not isinstance(served, str):
            return "unknown"
        return "match" if served == self.bundle.classifier_fingerprint else "differs"

    def _decodes_these_codes(self, metadata: ModelMetadata) -> bool:
        """Return whether the endpoint states that its decoder knows this bundle's codes; it need not state anything."""
        known = {"code": self.bundle.code_fingerprint, "decoder": f"sha256:{self.bundle.files[DECODER_ONNX]}"}
        for key, own in known.items():  # what codes mean goes before which decoder it is: there may be a newer one
            stated = metadata.parameters.get(key)
            if own is None or not isinstance(stated, str):
                continue
            if stated != own:
                raise EndpointResponseInvalid(
                    f"model {metadata.name!r} has the decoder of another obfuscator than {self.bundle.path}; serve it "
                    "with this bundle's, or send decoded images"
                )
            return True
        return False


def _on_device(bundle: Bundle | str | os.PathLike[str], threads: int, *, sends: bool) -> OnDeviceClassifier:
    """Open a bundle that needs no endpoint."""
    found = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    if found.kind != "classifier":
        raise BundleError(
            f"{found.path} holds an {found.kind}, whose payloads go to an endpoint: give its address (--server); "
            "only a classifier's bundle predicts on the device alone"
        )
    if sends:
        raise BundleError(f"{found.path} predicts on the device alone: it has nothing to send")
    return OnDeviceClassifier(found, threads=threads)
