"""The client for the Open Inference Protocol. It fails closed: see `base_client`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np

from sfumato.artifacts.bundle import DECODER_ONNX, Bundle, split_name
from sfumato.device.base_client import BaseClient
from sfumato.device.endpoint_binding import Plan, as_datatype, make_plan, payload_from
from sfumato.device.endpoints import open_endpoint
from sfumato.device.obfuscator import ObfuscatedImage, Obfuscator
from sfumato.device.predictions import Prediction, read_predictions
from sfumato.device.transport import ConnectionOptions
from sfumato.errors import EndpointFailed, EndpointRefused, EndpointResponseInvalid
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


class Client(BaseClient):
    """Classifies images at an endpoint that never sees them; images of one group go in one request.

    Args:
        server_url: the endpoint's address, such as `https://host:port`, or `grpcs://host:port` with the extra `[grpc]`;
            `http` and `grpc` are the same without TLS.
        bundle: an obfuscator bundle, or its folder.
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
        connection: token, timeout_s, retries, ca_file, allow_insecure_token: see `ConnectionOptions`.

    Attributes:
        obfuscator: runs on the device.
        bundle: the obfuscator's.
        model: the model's name at the endpoint.
        gate_enabled: whether images may be handled on-device: the bundle has a gate, and it is used.
        fingerprint: whether the endpoint serves the classifier the obfuscator was trained for, as `EndpointStatus` has
            it; None as long as it was not asked.
        datatype: the payload's datatype; None as long as the endpoint was not asked and none was given.

    Raises:
        BundleError: the bundle cannot be used.
        EndpointError: the address, the token, the file, the datatype or the encoding cannot be used, the token would
            be sent in the clear, or what gRPC needs is not installed.
    """

    def __init__(
        self,
        server_url: str,
        bundle: Bundle | str | os.PathLike[str],
        *,
        model: str | None = None,
        input_name: str | None = None,
        datatype: str | None = None,
        encoding: str | None = None,
        threads: int = 1,
        gate: bool = True,
        split: bool = False,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        super().__init__(Obfuscator(bundle, threads=threads, split=split), gate=gate)
        self.model = model or (split_name(self.bundle.name) if split else self.bundle.name)
        self.fingerprint: FingerprintMatch | None = None
        self.datatype = datatype
        self._requested = {"input_name": input_name, "datatype": datatype}
        self._payload = payload_from(self.bundle, self.obfuscator.payload_shape, split=split)
        self._payload.check(datatype)
        self._metadata: ModelMetadata | None = None
        self._plan: Plan | None = None
        self._warned = False
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
            self._metadata = self._endpoint.metadata(self.model)
            self.fingerprint = self._match(self._metadata)
        return self._metadata

    def _transmit(self, images: Sequence[ObfuscatedImage], obfuscate_ms: float) -> list[Prediction]:
        plan = self.plan()
        if self.fingerprint == "differs" and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._endpoint.server} serves another classifier as {self.model!r} than the one this obfuscator "
                "was trained for; its predictions may be incorrect",
                FingerprintWarning,
                stacklevel=6,
            )
        tensors = np.stack([image.tensor for image in images])
        tensor = Tensor(plan.input_name, as_datatype(tensors, plan.datatype, self.bundle.preprocessing))
        result = self._endpoint.infer(self.model, tensor, plan.output_name)
        return read_predictions(
            result,
            output_name=plan.output_name,
            count=len(images),
            labels=self.bundle.labels,
            obfuscate_ms=obfuscate_ms,
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
        if self.obfuscator.split and self._decodes_these_codes(metadata):
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
