"""What all clients share: deciding, sending, and the conversation in the Open Inference Protocol.

There is one way out of the device, `BaseClient._send`, and it takes obfuscated images only. When anything goes
wrong, an error is raised; no path sends the image itself instead. With a gate in the bundle, an image whose on-device
prediction is final is not sent, and if none is left to send, no request is made.

It is written once, as coroutines. `AsyncClient` awaits them; for `Client` they never suspend, see `blocking`.
"""

from __future__ import annotations

import copy
import os
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeVar, Unpack, final

import numpy as np

from sfumato.artifacts.bundle import DECODER_ONNX, Bundle, split_name
from sfumato.artifacts.execution_providers import CPU
from sfumato.device.deadline import deadline
from sfumato.device.endpoint_binding import Plan, as_datatype, make_plan, payload_from
from sfumato.device.endpoints import AsyncEndpoint
from sfumato.device.image import ImageSource
from sfumato.device.image_folders import in_groups
from sfumato.device.obfuscator import Decision, ObfuscatedImage, Obfuscator
from sfumato.device.on_device import NoEndpoint, OnDeviceClassifier
from sfumato.device.predictions import Prediction, read_predictions
from sfumato.device.transport import TIMEOUT_S, CallOptions, ConnectionOptions, printable
from sfumato.errors import (
    BundleError,
    EndpointError,
    EndpointFailed,
    EndpointModelNotFound,
    EndpointRefused,
    EndpointResponseInvalid,
)
from sfumato.wire import ModelMetadata, Tensor
from sfumato.wire.tracing import client_span

R = TypeVar("R")
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
        self.gate_enabled = self._gate_enabled(gate)

    @property
    def on_device(self) -> bool:
        """Whether the bundle predicts on the device alone, so that nothing is ever sent."""
        return isinstance(self._device, OnDeviceClassifier)

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that run the bundle; the CPU takes what those before it do not."""
        return self._device.providers

    @property
    def obfuscator(self) -> Obfuscator:
        """The obfuscator on the device.

        Raises:
            BundleError: the bundle predicts on the device alone.
        """
        if isinstance(self._device, OnDeviceClassifier):
            raise BundleError(f"{self.bundle.path} predicts on the device alone: it has no obfuscator")
        return self._device

    def with_options(
        self, *, timeout_s: float | None = None, retries: int | None = None, gate: bool | None = None
    ) -> Self:
        """Return a client with other options over the same connections; closing one closes both.

        Args:
            timeout_s: for a whole call.
            retries: further attempts.
            gate: let the bundle's gate handle images on-device.

        Raises:
            EndpointError: one of them cannot be used.
        """
        other = copy.copy(self)
        given: CallOptions = {}
        if timeout_s is not None:
            given["timeout_s"] = timeout_s
        if retries is not None:
            given["retries"] = retries
        if given:
            other._set_options(given)
        if gate is not None:
            other.gate_enabled = self._gate_enabled(gate)
        return other

    def _gate_enabled(self, gate: bool) -> bool:
        return gate and (self.on_device or self.bundle.gate is not None)

    async def _classify_all(self, sources: Iterable[ImageSource], batch_size: int) -> list[Prediction]:
        if batch_size < 1:
            raise EndpointError(f"batch_size must be at least 1, got {batch_size}")
        predictions: list[Prediction] = []
        groups = in_groups(sources, batch_size)
        while group := await self._wait_for(lambda: next(groups, None)):
            predictions += await self._classify_group(group)
        return predictions

    async def _classify_on_device(self, source: ImageSource) -> Prediction | None:
        if not self.gate_enabled:
            return None
        start = time.perf_counter()
        (decision,) = await self._compute(lambda: self._device.decide_batch([source]))
        return self._local(decision, (time.perf_counter() - start) * 1000)

    async def _classify_group(self, sources: Sequence[ImageSource]) -> list[Prediction]:
        decisions, obfuscate_ms = await self._compute(lambda: self._decide(sources))
        to_send = [decision.obfuscated for decision in decisions if decision.obfuscated is not None]
        sent = iter(await self._send(to_send, obfuscate_ms=obfuscate_ms) if to_send else ())
        return [
            self._local(decision, obfuscate_ms) or replace(next(sent), out_of_distribution=decision.out_of_distribution)
            for decision in decisions
        ]

    def _decide(self, sources: Sequence[ImageSource]) -> tuple[list[Decision], float]:
        """Return one decision for each image, and how many milliseconds it took per image."""
        start = time.perf_counter()
        decisions = self._device.decide_batch(sources, gate=self.gate_enabled)
        return decisions, (time.perf_counter() - start) * 1000 / len(sources)

    def _local(self, decision: Decision, obfuscate_ms: float) -> Prediction | None:
        if decision.obfuscated is not None or decision.probabilities is None:
            return None
        return Prediction.of(
            decision.probabilities,
            self.bundle.labels,
            predicted_by="device",
            obfuscate_ms=obfuscate_ms,
            out_of_distribution=decision.out_of_distribution,
            labelling=self.bundle.labelling,
        )

    @final
    async def _send(self, images: Sequence[ObfuscatedImage], *, obfuscate_ms: float) -> list[Prediction]:
        """Send images: the only way out of the device. A `TypeError` for anything but obfuscated images."""
        if not all(isinstance(image, ObfuscatedImage) for image in images):
            raise TypeError("only obfuscated images may be sent")
        with client_span(len(images)):
            return await self._transmit(images, obfuscate_ms)

    @abstractmethod
    async def _compute(self, work: Callable[[], R]) -> R:
        """Return what a function returns that takes the processor for a while."""

    @abstractmethod
    async def _wait_for(self, work: Callable[[], R]) -> R:
        """Return what a function returns that may wait, for a source of images."""

    @abstractmethod
    async def _transmit(self, images: Sequence[ObfuscatedImage], obfuscate_ms: float) -> list[Prediction]:
        """Return one prediction for each image, in order. Called by `_send` alone."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Close the connections for good."""

    @abstractmethod
    def _set_options(self, options: CallOptions) -> None:
        """Change the options of this client's calls."""


class ClientOptions(ConnectionOptions, total=False):
    """All options of a client of the protocol; see `Client` for what each means and its default."""

    model: str | None
    input_name: str | None
    datatype: str | None
    encoding: str | None
    threads: int
    providers: Sequence[str]
    gate: bool
    split: bool
    allow_recognisable: bool


class ProtocolClient(BaseClient):
    """Asks a model of the Open Inference Protocol; see `Client` for the arguments and attributes."""

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
        providers: Sequence[str] = CPU,
        gate: bool = True,
        split: bool = False,
        allow_recognisable: bool = False,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        if server_url is None:
            super().__init__(_on_device(bundle, threads, providers, sends=split or not gate), gate=gate)
        else:
            obfuscator = Obfuscator(
                bundle, threads=threads, split=split, providers=providers, allow_recognisable=allow_recognisable
            )
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
        self._endpoint: AsyncEndpoint = NoEndpoint()
        if server_url is not None:
            self._endpoint = self._open(server_url, encoding, connection)

    @abstractmethod
    def _open(self, server_url: str, encoding: str | None, connection: ConnectionOptions) -> AsyncEndpoint:
        """Return the endpoint at an address; connect to nothing yet."""

    async def _disconnect(self) -> None:
        await self._endpoint.close()

    def _set_options(self, options: CallOptions) -> None:
        self._endpoint = self._endpoint.with_options(options)
        self._timeout_s = options.get("timeout_s", self._timeout_s)

    async def _status(self) -> EndpointStatus:
        with deadline(self._timeout_s):
            try:
                await self._ask_ready()
            except (EndpointFailed, EndpointRefused) as error:  # the protocol says "not ready" with a 4xx
                return EndpointStatus(False, self.model, platform="", fingerprint="unknown", reason=str(error))
            await self._make_plan()  # raises if the model cannot take the payload
            metadata = await self._ask_metadata()
        return EndpointStatus(True, self.model, platform=metadata.platform, fingerprint=self._match(metadata))

    async def _ask_ready(self) -> None:
        await self._endpoint.check_ready()

    async def _ask_metadata(self) -> ModelMetadata:
        """Return what the endpoint says of the model; it is asked once."""
        metadata = self._metadata
        if metadata is None:
            try:
                self._metadata = metadata = await self._endpoint.metadata(self.model)
            except EndpointModelNotFound as error:
                raise EndpointModelNotFound(
                    f"{error}; {self.model!r} was asked for, with the bundle {self.bundle.path}: give the bundle of an "
                    "obfuscator for a model that is served there (--bundle), or the model's name there (--model)"
                ) from None
            self.fingerprint = self._match(metadata)
        return metadata  # `_check_version` of another thread may have discarded the attribute

    async def _make_plan(self) -> Plan:
        """Return how to ask the model, decided once. Several threads or tasks may do so at once."""
        plan = self._plan
        if plan is None:
            plan = make_plan(await self._ask_metadata(), self._payload, **self._requested)
            self.datatype, self._plan = plan.datatype, plan
        return plan

    async def _transmit(self, images: Sequence[ObfuscatedImage], obfuscate_ms: float) -> list[Prediction]:
        with deadline(self._timeout_s):
            plan = await self._make_plan()
            self._warn_once()
            result = await self._endpoint.infer(self.model, self._joined(images, plan), plan.output_name)
            await self._check_version(result.response.model_version, plan)
        return read_predictions(
            result,
            output_name=plan.output_name,
            count=len(images),
            labels=self.bundle.labels,
            class_map=self.bundle.class_map,
            labelling=self.bundle.labelling,
            obfuscate_ms=obfuscate_ms,
        )

    def _joined(self, images: Sequence[ObfuscatedImage], plan: Plan) -> Tensor:
        """Return the images as one tensor; a single one is not copied, as many of them may be in flight."""
        tensors = images[0].tensor[None] if len(images) == 1 else np.stack([image.tensor for image in images])
        return Tensor(plan.input_name, as_datatype(tensors, plan.datatype, self.bundle.preprocessing))

    def _warn_once(self) -> None:
        if self.fingerprint == "differs" and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._endpoint.server} serves another classifier as {self.model!r} than the one this obfuscator "
                "was trained for; its predictions may be incorrect",
                FingerprintWarning,
                stacklevel=_callers_level(),
            )

    async def _check_version(self, version: str, plan: Plan) -> None:
        """Ask for the metadata anew if another version responded than it names: the server may have loaded one since.

        Raises:
            EndpointError: it does not name this version now either, or the version takes or gives something else.
        """
        named = (await self._ask_metadata()).versions
        if not version or not named or version in named:
            return
        self._metadata = self._plan = None
        stated = (await self._ask_metadata()).versions
        if version not in stated or await self._make_plan() != plan:
            await self._endpoint.reconnect()
            raise EndpointResponseInvalid(
                f"the response is of version {printable(version)!r} of the model {self.model!r}; "
                f"{self._endpoint.server} has {printable(', '.join(stated)) or 'none'}; the connection was closed"
            )

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


def _on_device(
    bundle: Bundle | str | os.PathLike[str], threads: int, providers: Sequence[str], *, sends: bool
) -> OnDeviceClassifier:
    """Open a bundle that needs no endpoint."""
    found = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    if found.kind != "classifier":
        raise BundleError(
            f"{found.path} holds an {found.kind}, whose payloads go to an endpoint: give its address (--server); "
            "only a classifier's bundle predicts on the device alone"
        )
    if sends:
        raise BundleError(f"{found.path} predicts on the device alone: it has nothing to send")
    return OnDeviceClassifier(found, threads=threads, providers=providers)


def _callers_level() -> int:
    """Return the `stacklevel` at which a caller in this module finds the code that called sfumato."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "sfumato":
        frame, level = frame.f_back, level + 1
    return level
