"""The client: obfuscate, send, read the label. It fails closed.

There is one function that sends (`Client._send`), and it takes obfuscated images only. When anything goes
wrong, an error is raised; there is no path on which the image itself is sent instead. With a gate in the bundle,
an image whose answer on the device is final is not sent at all, and if none is left to send, nobody is asked anything.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Literal, Self

import numpy as np

from sfumato.artifacts.bundle import DECODER_ONNX, Bundle, split_name
from sfumato.device.concurrent import IN_FLIGHT, in_order
from sfumato.device.connect import open_endpoint
from sfumato.device.endpoint_binding import Plan, as_datatype, make_plan, payload_from
from sfumato.device.gate_client import answer_at_home, answer_group
from sfumato.device.image import ImageSource
from sfumato.device.obfuscator import ObfuscatedImage, Obfuscator
from sfumato.device.predictions import Answer, read_answers
from sfumato.errors import EndpointAnswerInvalid, EndpointError, EndpointFailed, EndpointRefused
from sfumato.wire import ModelMetadata, Tensor

__all__ = ["Answer", "Client", "EndpointStatus", "FingerprintWarning"]

FingerprintMatch = Literal["match", "differs", "unknown"]


class FingerprintWarning(UserWarning):
    """The endpoint serves another classifier than the one the obfuscator was made for."""


@dataclass(frozen=True)
class EndpointStatus:
    """What an endpoint says of itself.

    Attributes:
        ready: whether it takes requests.
        model: the model that was asked for.
        platform: what runs it there, "" if it does not say.
        fingerprint: whether it is the classifier the obfuscator was made for; "unknown" if it does not say.
        reason: what it said when it was not ready.
    """

    ready: bool
    model: str
    platform: str
    fingerprint: FingerprintMatch
    reason: str = ""


class Client:
    """Classifies images at an endpoint that never sees them.

    Args:
        server_url: the endpoint's address, such as `https://host:port`, or `grpcs://host:port` with the extra `[grpc]`;
            `http` and `grpc` are the same without TLS.
        bundle: an obfuscator bundle, or its folder.
        model: the model's name at the endpoint; by default the bundle's classifier, or its split form.
        input_name: the model's input, for servers whose metadata lists none (KServe's SDK); by default "input".
        datatype: in which images travel: "FP32", "FP16", "FP64", or "UINT8" if the bundle's output is 8-bit; by
            default what the model's metadata says that it takes.
        encoding: how tensors travel over HTTP: "binary", or "json", which takes about five times as many bytes; by
            default "binary" where the server says that it takes it.
        token: the bearer token, if the endpoint wants one.
        timeout_s: for connecting, and again for the answer of each attempt.
        retries: further attempts after a broken connection, or status 429, 500, 502, 503 or 504.
        ca_file: PEM file with the authorities to trust instead of the system's.
        allow_insecure_token: send the token without TLS to another machine, where others can read it.
        threads: threads for the obfuscator.
        gate: let the bundle's gate, if it has one, keep images at home whose answer on the device is final. If not,
            everything is sent, obfuscated.
        split: send codes of a few bytes to a model that begins with the bundle's decoder; `sfumato serve --decoder` has
            one.

    Attributes:
        bundle: the obfuscator's.
        model: the model's name at the endpoint.
        keeps: whether images may stay at home: the bundle has a gate, and it is used.
        fingerprint: whether the endpoint serves the classifier the obfuscator was made for, as `EndpointStatus` has
            it; None as long as it was not asked.
        datatype: in which images travel; None as long as the endpoint was not asked and none was given.

    Raises:
        BundleError: the bundle cannot be used.
        EndpointError: the address, the token, the file, the datatype or the encoding cannot be used, the token would
            travel in the open, or what gRPC needs is not installed.
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
        token: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 2,
        ca_file: str | os.PathLike[str] | None = None,
        allow_insecure_token: bool = False,
        threads: int = 1,
        gate: bool = True,
        split: bool = False,
    ) -> None:
        self._obfuscator = Obfuscator(bundle, threads=threads, split=split)
        self.bundle = self._obfuscator.bundle
        self.model = model or (split_name(self.bundle.name) if split else self.bundle.name)
        self.keeps = gate and self.bundle.gate is not None
        self.fingerprint: FingerprintMatch | None = None
        self.datatype = datatype
        self._stated = {"input_name": input_name, "datatype": datatype}
        self._payload = payload_from(self.bundle, self._obfuscator.payload_shape, split=split)
        self._payload.check(datatype)
        self._plan: Plan | None = None
        self._endpoint = open_endpoint(
            server_url,
            encoding=encoding,
            token=token,
            timeout_s=timeout_s,
            retries=retries,
            ca_file=ca_file,
            allow_insecure_token=allow_insecure_token,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._endpoint.close()

    def classify(self, source: ImageSource) -> Answer:
        """Classifies one image. See `classify_batch`."""
        return self.classify_batch([source], batch_size=1)[0]

    def classify_batch(self, sources: Iterable[ImageSource], *, batch_size: int = 16) -> list[Answer]:
        """Classifies images, several in one request.

        Images that stay at home are answered here; of a group in which all do, no request is made.

        Args:
            sources: whatever `load_image` takes.
            batch_size: images in one group; those of a group that have to be sent go in one request.

        Returns:
            One answer per image, in order.

        Raises:
            ImageError: an image cannot be used.
            BundleError: the obfuscator failed, did not hide the image, or gave no usable answer of its own.
            EndpointError: one of its kinds; see `sfumato.errors`.
        """
        answers: list[Answer] = []
        for group in _groups(sources, batch_size):
            answers += answer_group(self._obfuscator, group, keeps=self.keeps, send=self._send)
        return answers

    def classify_many(self, sources: Iterable[ImageSource], *, in_flight: int = IN_FLIGHT) -> Iterator[Answer]:
        """Classifies images as they come, several underway at once, so that round trips are not waited for in turn.

        In asyncio, `await asyncio.to_thread(client.classify, image)`: a client may be used from several threads.

        Args:
            sources: whatever `load_image` takes; may end never. They are taken in a thread of its own.
            in_flight: images that may be underway, or answered and not yet looked at.

        Returns:
            The answers, in order. With the first error it ends, and no image is begun any more.

        Raises:
            EndpointError: `in_flight` is not positive; and what `classify` raises, at the image's place.
        """
        return in_order(self.classify, sources, in_flight=in_flight)

    def classify_at_home(self, source: ImageSource) -> Answer | None:
        """The device's own answer if it is final; None if the image has to be sent. Sends nothing.

        Raises:
            ImageError: the image cannot be used.
            BundleError: as in `classify_batch`.
        """
        return answer_at_home(self._obfuscator, source) if self.keeps else None

    def check(self) -> EndpointStatus:
        """Asks whether the endpoint is ready, and for the right classifier. Sends nothing of any image.

        Raises:
            EndpointUnreachable: no connection, or no answer in time.
            EndpointRefused: it has no such model, or does not accept the token.
            EndpointAnswerInvalid: its metadata is malformed, or of a model that cannot take these images.
        """
        try:
            self._endpoint.check_ready()
        except (EndpointFailed, EndpointRefused) as error:  # the protocol says "not ready" with a 4xx
            return EndpointStatus(False, self.model, platform="", fingerprint="unknown", reason=str(error))
        plan = self._fetch_plan()
        return EndpointStatus(
            ready=True, model=self.model, platform=plan.metadata.platform, fingerprint=self._compared(plan.metadata)
        )

    def _send(self, images: Sequence[ObfuscatedImage], *, obfuscate_ms: float) -> list[Answer]:
        """The only way out of the device."""
        if not all(isinstance(image, ObfuscatedImage) for image in images):
            raise TypeError("only obfuscated images may be sent")
        plan = self._plan
        if plan is None:  # several threads may find it so; each then asks, and fails, by itself
            plan = self._fetch_plan()
            first, self._plan = self._plan is None, plan
            if first:
                self._warn_of_another_classifier()
        tensors = np.stack([image.tensor for image in images])
        given = Tensor(plan.input_name, as_datatype(tensors, plan.datatype, self.bundle.preprocessing))
        asked = self._endpoint.infer(self.model, given, plan.output_name)
        return read_answers(
            asked.response,
            output_name=plan.output_name,
            count=len(images),
            labels=self.bundle.labels,
            payload_bytes=asked.payload_bytes,
            obfuscate_ms=obfuscate_ms,
            round_trip_ms=asked.round_trip_ms,
        )

    def _fetch_plan(self) -> Plan:
        metadata = self._endpoint.metadata(self.model)
        self.fingerprint = self._compared(metadata)
        plan = make_plan(metadata, self._payload, **self._stated)
        self.datatype = plan.datatype
        return plan

    def _compared(self, metadata: ModelMetadata) -> FingerprintMatch:
        if self._obfuscator.split and self._draws_these_codes(metadata):
            return "match"  # whatever the classifier: the decoder before it was made for both
        served = metadata.parameters.get("fingerprint")
        if not isinstance(served, str):
            return "unknown"
        return "match" if served == self.bundle.classifier_fingerprint else "differs"

    def _draws_these_codes(self, metadata: ModelMetadata) -> bool:
        """Whether the endpoint says that its decoder knows this bundle's codes; one that says nothing is believed.

        Raises:
            EndpointAnswerInvalid: it says that its decoder is for other codes, to which these mean nothing.
        """
        known = {"code": self.bundle.code_fingerprint, "decoder": f"sha256:{self.bundle.files[DECODER_ONNX]}"}
        said = {key: metadata.parameters.get(key) for key, own in known.items() if own is not None}
        said = {key: value for key, value in said.items() if isinstance(value, str)}
        if not said:
            return False
        key = next(iter(said))  # what codes mean goes before which decoder it is: there may be a newer one
        if said[key] != known[key]:
            raise EndpointAnswerInvalid(
                f"model {metadata.name!r} has the decoder of another obfuscator than {self.bundle.path}; serve it with "
                "this bundle's, or send what it draws"
            )
        return True

    def _warn_of_another_classifier(self) -> None:
        if self.fingerprint == "differs":
            warnings.warn(
                f"{self._endpoint.server} serves another classifier as {self.model!r} than the one this obfuscator "
                "was made for; its answers may be wrong",
                FingerprintWarning,
                stacklevel=6,
            )


def _groups(sources: Iterable[ImageSource], size: int) -> Iterator[list[ImageSource]]:
    if size < 1:
        raise EndpointError(f"batch_size must be at least 1, got {size}")
    rest = iter(sources)
    while group := list(islice(rest, size)):
        yield group
