"""The client: obfuscate, send, read the label. It fails closed.

There is one function that sends (`Client._send`), and it takes obfuscated pictures only. When anything goes
wrong, an error is raised; there is no path on which the picture itself is sent instead. With a gate in the bundle,
a picture whose answer on the device is final is not sent at all, and if none is left to send, nobody is asked anything.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

import numpy as np

from sfumato.bundle import DECODER_ONNX, Bundle, split_name
from sfumato.device.answers import Answer, read_answers
from sfumato.device.deciding import answer_at_home, answer_group
from sfumato.device.obfuscator import ObfuscatedPicture, Obfuscator
from sfumato.device.picture import PictureSource
from sfumato.device.transport import Transport
from sfumato.errors import EndpointAnswerInvalid, EndpointError, EndpointFailed, EndpointRefused, WireError
from sfumato.wire import (
    HEADER_LENGTH,
    InferRequest,
    ModelMetadata,
    RequestedOutput,
    Tensor,
    TensorSpec,
    decode_metadata,
    decode_response,
    encode_request,
)

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


@dataclass(frozen=True)
class _Plan:
    """How to ask this endpoint."""

    input_name: str
    output_name: str | None
    metadata: ModelMetadata
    fingerprint: FingerprintMatch


class Client:
    """Classifies pictures at an endpoint that never sees them.

    Args:
        server_url: the endpoint's address, such as `https://host:port`.
        bundle: an obfuscator bundle, or its folder.
        model: the model's name at the endpoint; by default the bundle's classifier, or its split form.
        input_name: the model's input, for servers whose metadata lists none (KServe's SDK).
        token: the bearer token, if the endpoint wants one.
        timeout_s: for connecting, and again for the answer of each attempt.
        retries: further attempts after a lost connection or status 429, 502, 503 or 504.
        ca_file: PEM file with the authorities to trust instead of the system's.
        binary: send bytes instead of JSON, which takes five times as many.
        allow_insecure_token: send the token over plain HTTP to another machine, where others can read it.
        threads: threads for the obfuscator.
        gate: let the bundle's gate, if it has one, keep pictures at home whose answer on the device is final. If not,
            everything is sent, obfuscated.
        split: send codes of a few bytes to a model that begins with the bundle's decoder; `sfumato serve --decoder` has
            one.

    Attributes:
        bundle: the obfuscator's.
        model: the model's name at the endpoint.
        keeps: whether pictures may stay at home: the bundle has a gate, and it is used.
        fingerprint: whether the endpoint serves the classifier the obfuscator was made for, as `EndpointStatus` has
            it; None as long as it was not asked.

    Raises:
        BundleError: the bundle cannot be used.
        EndpointError: the URL, the token or the file cannot be used, or the token would travel in the open.
    """

    def __init__(
        self,
        server_url: str,
        bundle: Bundle | str | os.PathLike[str],
        *,
        model: str | None = None,
        input_name: str | None = None,
        token: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 2,
        ca_file: str | os.PathLike[str] | None = None,
        binary: bool = True,
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
        self._path = f"/v2/models/{quote(self.model, safe='')}"
        self._input_name = input_name
        self._binary = binary
        self._plan: _Plan | None = None
        self._transport = Transport(
            server_url,
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
        self._transport.close()

    def classify(self, source: PictureSource) -> Answer:
        """Classifies one picture. See `classify_batch`."""
        return self.classify_batch([source], batch_size=1)[0]

    def classify_batch(self, sources: Iterable[PictureSource], *, batch_size: int = 16) -> list[Answer]:
        """Classifies pictures, several in one request.

        Pictures that stay at home are answered here; of a group in which all do, no request is made.

        Args:
            sources: whatever `load_picture` takes.
            batch_size: pictures in one group; those of a group that have to be sent go in one request.

        Returns:
            One answer per picture, in order.

        Raises:
            PictureError: a picture cannot be used.
            BundleError: the obfuscator failed, did not hide the picture, or gave no usable answer of its own.
            EndpointError: one of its kinds; see `sfumato.errors`.
        """
        answers: list[Answer] = []
        for group in _groups(sources, batch_size):
            answers += answer_group(self._obfuscator, group, keeps=self.keeps, send=self._send)
        return answers

    def classify_at_home(self, source: PictureSource) -> Answer | None:
        """The device's own answer if it is final; None if the picture has to be sent. Sends nothing.

        Raises:
            PictureError: the picture cannot be used.
            BundleError: as in `classify_batch`.
        """
        return answer_at_home(self._obfuscator, source) if self.keeps else None

    def check(self) -> EndpointStatus:
        """Asks whether the endpoint is ready, and for the right classifier. Sends nothing of any picture.

        Raises:
            EndpointUnreachable: no connection, or no answer in time.
            EndpointRefused: it has no such model, or does not accept the token.
            EndpointAnswerInvalid: its metadata is malformed, or of a model that cannot take these pictures.
        """
        try:
            self._transport.get("/v2/health/ready")
        except (EndpointFailed, EndpointRefused) as error:  # the protocol says "not ready" with a 4xx
            return EndpointStatus(False, self.model, platform="", fingerprint="unknown", reason=str(error))
        plan = self._fetch_plan()
        return EndpointStatus(
            ready=True, model=self.model, platform=plan.metadata.platform, fingerprint=plan.fingerprint
        )

    def _send(self, pictures: Sequence[ObfuscatedPicture], *, obfuscate_ms: float) -> list[Answer]:
        """The only way out of the device."""
        if not all(isinstance(picture, ObfuscatedPicture) for picture in pictures):
            raise TypeError("only obfuscated pictures may be sent")
        if self._plan is None:
            self._plan = self._fetch_plan()
            self._warn_of_another_classifier(self._plan)
        name = self._plan.output_name
        request = InferRequest(
            inputs=(Tensor(self._plan.input_name, np.stack([picture.tensor for picture in pictures])),),
            outputs=() if name is None else (RequestedOutput(name, binary=self._binary),),
            parameters={"binary_data_output": True} if self._binary and name is None else {},
        )
        encoded = encode_request(request, binary=self._binary)
        start = time.perf_counter()
        reply = self._transport.request("POST", f"{self._path}/infer", encoded.body, encoded.headers())
        round_trip_ms = (time.perf_counter() - start) * 1000
        try:
            response = decode_response(reply.body, reply.headers.get(HEADER_LENGTH.lower()))
        except WireError as error:
            raise EndpointAnswerInvalid(f"the answer of {self._transport.server} is malformed: {error}") from None
        return read_answers(
            response,
            output_name=name,
            count=len(pictures),
            labels=self.bundle.labels,
            payload_bytes=len(encoded.body),
            obfuscate_ms=obfuscate_ms,
            round_trip_ms=round_trip_ms,
        )

    def _fetch_plan(self) -> _Plan:
        reply = self._transport.get(self._path)
        try:
            metadata = decode_metadata(reply.body)
        except WireError as error:
            raise EndpointAnswerInvalid(f"the metadata of {self._transport.server} is malformed: {error}") from None
        served = metadata.parameters.get("fingerprint")
        fingerprint: FingerprintMatch = "unknown"
        if isinstance(served, str):
            fingerprint = "match" if served == self.bundle.classifier_fingerprint else "differs"
        if self._obfuscator.split and self._draws_these_codes(metadata):
            fingerprint = "match"  # whatever the classifier: the decoder before it was made for both
        self.fingerprint = fingerprint
        return _Plan(
            input_name=_pick_input(
                metadata,
                "UINT8" if self._obfuscator.split else "FP32",
                self._obfuscator.travels_shape,
                self._input_name,
            ),
            output_name=_pick_output(metadata, len(self.bundle.labels)),
            metadata=metadata,
            fingerprint=fingerprint,
        )

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

    def _warn_of_another_classifier(self, plan: _Plan) -> None:
        if plan.fingerprint == "differs":
            warnings.warn(
                f"{self._transport.server} serves another classifier as {self.model!r} than the one this obfuscator "
                "was made for; its answers may be wrong",
                FingerprintWarning,
                stacklevel=6,
            )


def _groups(sources: Iterable[PictureSource], size: int) -> Iterator[list[PictureSource]]:
    if size < 1:
        raise EndpointError(f"batch_size must be at least 1, got {size}")
    rest = iter(sources)
    while group := list(islice(rest, size)):
        yield group


def _pick_input(metadata: ModelMetadata, datatype: str, size: tuple[int, ...], fallback: str | None) -> str:
    if not metadata.inputs and fallback is not None:
        return fallback
    if len(metadata.inputs) != 1:
        raise EndpointAnswerInvalid(
            f"model {metadata.name!r} states {len(metadata.inputs)} inputs; exactly one is needed "
            "(if it states none, give its name as input_name)"
        )
    spec = metadata.inputs[0]
    if spec.datatype != datatype:
        raise EndpointAnswerInvalid(f"model {metadata.name!r} takes {spec.datatype}; this client sends {datatype}")
    if not _accepts(spec, size):
        raise EndpointAnswerInvalid(
            f"model {metadata.name!r} takes the shape {list(spec.shape)}; the obfuscator makes {[-1, *size]}"
        )
    return spec.name


def _pick_output(metadata: ModelMetadata, classes: int) -> str | None:
    """The first output with one number per class; None, and so whatever comes, if the endpoint states no outputs."""
    if not metadata.outputs:
        return None
    for spec in metadata.outputs:
        if _accepts(spec, (classes,)):
            return spec.name
    raise EndpointAnswerInvalid(f"model {metadata.name!r} has no output with {classes} classes per picture")


def _accepts(spec: TensorSpec, row: tuple[int, ...]) -> bool:
    return len(spec.shape) == len(row) + 1 and all(
        want in (-1, got) for got, want in zip(row, spec.shape[1:], strict=True)
    )
