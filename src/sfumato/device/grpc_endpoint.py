"""The protocol over gRPC, for the extra `[grpc]`: with the bounds and the errors of `Transport`.

gRPC's own habits that a device cannot use are switched off: proxies from the environment, retries, and settings that a
name server may hand out.
"""

from __future__ import annotations

import copy
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np

from sfumato import errors
from sfumato.device.deadline import deadline, left_s
from sfumato.device.predictions import InferResult, check_origin, new_request_id
from sfumato.device.transport import (
    BACKOFF_S,
    CallOptions,
    Connection,
    ConnectionOptions,
    checked_url,
    printable,
)
from sfumato.errors import EndpointError, WireError
from sfumato.wire import DTYPES, InferResponse, ModelMetadata, Tensor, TensorSpec, fields
from sfumato.wire.tracing import trace_headers

try:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc
except (ImportError, RuntimeError) as error:  # protobuf and grpcio raise RuntimeErrors about versions that do not fit
    raise EndpointError(
        f"grpc:// addresses need what pip install 'sfumato[grpc]' brings ({type(error).__name__}); install it, or give "
        "an http:// or https:// address"
    ) from error

_BACKOFF_MS = round(BACKOFF_S * 1000)
_MOST_MS = 2**31 - 1
_CHANNEL = (
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),  # a closed channel's connection is closed, too
    ("grpc.initial_reconnect_backoff_ms", _BACKOFF_MS),
    ("grpc.max_send_message_length", -1),
)
_RETRIED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})
_REFUSED = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
_TYPED_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


class GrpcEndpoint:
    """An endpoint over gRPC, at `grpc://host:port`, or `grpcs://host:port` for TLS. Tensors are sent as bytes.

    Raises:
        EndpointError: the address, the token or the file cannot be used, or the token would be sent in the clear.
    """

    def __init__(self, server_url: str, **options: Unpack[ConnectionOptions]) -> None:
        url = checked_url(server_url, ("grpc", "grpcs"))
        if url.port is None or (url.path or "/") != "/":
            raise EndpointError("a gRPC address must look like grpcs://host:port, with a port and without a path")
        self._connection = to = Connection(url=url, **options)
        self.server = to.server
        settings = [
            *_CHANNEL,
            # Its name says otherwise, but this is also how long connecting may take: as long as the call.
            ("grpc.min_reconnect_backoff_ms", min(round(to.timeout_s * 1000) or 1, _MOST_MS)),
            ("grpc.max_receive_message_length", to.max_response_bytes),
            ("grpc.enable_http_proxy", int(to.proxy is not None)),
            *([] if to.proxy is None else [("grpc.http_proxy", to.proxy)]),
        ]
        self._channel = _Channel(f"dns:///{url.host}:{url.port}", _credentials(to) if to.secure else None, settings)
        self._call_metadata = () if to.token is None else (("authorization", f"Bearer {to.token}"),)

    def with_options(self, options: CallOptions) -> Self:
        """See `AsyncEndpoint`."""
        other = copy.copy(self)
        other._connection = self._connection.changed(options)
        return other

    async def check_ready(self) -> None:
        """See `AsyncEndpoint`."""
        if not (await self._ask("ServerReady", service_pb2.ServerReadyRequest())).ready:
            raise errors.EndpointFailed(f"{self.server} says that it is not ready")

    async def metadata(self, model: str) -> ModelMetadata:
        """See `AsyncEndpoint`."""
        reply = await self._ask("ModelMetadata", service_pb2.ModelMetadataRequest(name=model))
        try:
            return ModelMetadata(
                name=fields.name(reply.name, "the model's name"),
                versions=tuple(fields.name(version, "a version") for version in reply.versions),
                platform=fields.name(reply.platform, "the platform", empty=True),
                inputs=tuple(_spec(spec, "input") for spec in reply.inputs),
                outputs=tuple(_spec(spec, "output") for spec in reply.outputs),
            )
        except WireError as error:
            raise errors.EndpointResponseInvalid(f"the metadata of {self.server} is malformed: {error}") from None

    async def infer(self, model: str, tensor: Tensor, output_name: str | None) -> InferResult:
        """See `AsyncEndpoint`."""
        request = service_pb2.ModelInferRequest(model_name=model, id=new_request_id())
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        request.raw_input_contents.append(np.asarray(tensor.array, DTYPES[tensor.datatype], order="C").tobytes())
        if output_name is not None:
            request.outputs.add(name=output_name)
        start = time.perf_counter()
        reply = await self._ask("ModelInfer", request)
        round_trip_ms = (time.perf_counter() - start) * 1000
        try:
            response = InferResponse(
                model_name=fields.name(reply.model_name, "the response's 'model_name'"),
                outputs=tuple(_outputs(reply)),
                model_version=fields.name(reply.model_version, "the response's 'model_version'", empty=True),
                id=fields.name(reply.id, "the response's 'id'", empty=True),
            )
            check_origin(response, request_id=request.id, model=model)
        except (WireError, errors.EndpointResponseInvalid) as error:
            await self.reconnect()
            raise errors.EndpointResponseInvalid(f"{self.server}: {error}") from None
        return InferResult(response, request.ByteSize(), round_trip_ms)

    async def reconnect(self) -> None:
        """See `AsyncEndpoint`."""
        self._channel.reopen()

    async def close(self) -> None:
        """See `AsyncEndpoint`."""
        self._connection.lifetime.closed = True
        self._channel.close()

    async def _ask(self, method: str, request: Any) -> Any:
        """Make one call, again if that can help."""
        attempt = 0
        self._connection.budget.add()
        with deadline(self._connection.timeout_s):
            while True:
                self._connection.check_open()
                try:
                    call = getattr(self._channel.stub, method)
                    metadata = (*self._call_metadata, *trace_headers().items())
                    return call(request, timeout=left_s(), metadata=metadata)
                except grpc.RpcError as error:
                    failed = self._error(error)
                    if error.code() not in _RETRIED or _is_too_long(error):
                        raise failed from None
                except ValueError:  # closed by another thread, which was sent a foreign response
                    closed = errors.EndpointUnreachable(f"the connection to {self.server} was closed")
                    raise closed from None
                pause_s = self._connection.pause_s(attempt)
                if pause_s is None:
                    raise failed
                time.sleep(pause_s)
                attempt += 1

    def _error(self, error: Any) -> EndpointError:
        code = error.code()
        what = f"{self.server} responded with {code.name}"
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return errors.EndpointRefused(f"{what}: {self._connection.hint()}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._connection.late()
        text = printable(self._connection.without_token(error.details() or ""))
        reason = f": {text}" if text else ""
        if _is_too_long(error):
            return self._connection.too_long()
        if "deserializing response" in reason:
            return errors.EndpointResponseInvalid(f"the response of {self.server} is no message of the protocol")
        if code is grpc.StatusCode.UNAVAILABLE:
            return errors.EndpointUnreachable(f"no connection to {self.server}, or it is not available{reason}")
        if code is grpc.StatusCode.NOT_FOUND:
            return errors.EndpointModelNotFound(what + reason)
        if code in _REFUSED:
            return errors.EndpointRefused(what + reason)
        return errors.EndpointFailed(what + reason)


class _Channel:
    """A channel that can be replaced; endpoints that differ in their options share one."""

    def __init__(self, target: str, credentials: Any, settings: list[tuple[str, Any]]) -> None:
        self._target, self._credentials, self._settings = target, credentials, settings
        self._lock, self._closed = threading.Lock(), False
        self._open()

    def _open(self) -> None:
        if self._credentials is None:
            self._channel = grpc.insecure_channel(self._target, options=self._settings)
        else:
            self._channel = grpc.secure_channel(self._target, self._credentials, options=self._settings)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def reopen(self) -> None:
        with self._lock:  # of two threads that saw the same channel, one would leave its new one open
            if self._closed:
                return
            old = self._channel
            self._open()
        old.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._channel.close()


def _is_too_long(error: Any) -> bool:
    """Return whether this side stopped reading; the server's refusal of a long request begins with "SERVER:"."""
    details = str(error.details())
    return "CLIENT: Received message larger than max" in details or "Decompressed message larger than max" in details


def _credentials(to: Connection) -> Any:
    """Return the authorities to trust: the file's, the system's, or, where OpenSSL knows of none, gRPC's own.

    With the client's certificate, if it has one.
    """
    to.tls()  # gRPC does not say what is wrong with a file
    file = to.ca_file or ssl.get_default_verify_paths().cafile
    own = None if to.cert_file is None else Path(to.cert_file).read_bytes()
    key = None if own is None else Path(to.key_file or to.cert_file or "").read_bytes()
    return grpc.ssl_channel_credentials(None if file is None else Path(file).read_bytes(), key, own)


def _spec(spec: Any, kind: str, *, wildcard: bool = True) -> TensorSpec:
    return fields.tensor_spec(spec.name, spec.datatype, list(spec.shape), kind, wildcard=wildcard)


def _outputs(reply: Any) -> Iterator[Tensor]:
    """Yield the tensors of a response, from its bytes or its typed numbers."""
    raw = list(reply.raw_output_contents)
    if not reply.outputs or (raw and len(raw) != len(reply.outputs)):
        raise WireError(f"{len(reply.outputs)} outputs with {len(raw)} raw contents")
    for index, output in enumerate(reply.outputs):
        spec = _spec(output, "output", wildcard=False)
        dtype = DTYPES.get(spec.datatype)
        if dtype is None:
            raise WireError(f"the datatype of output {spec.name!r} must be one of {', '.join(DTYPES)}")
        try:
            if raw:
                values = np.frombuffer(raw[index], dtype)
            else:
                values = np.array(getattr(output.contents, _TYPED_CONTENTS.get(spec.datatype, "bytes_contents")), dtype)
            yield Tensor(spec.name, values.reshape(spec.shape))
        except (ValueError, OverflowError):
            raise WireError(f"output {spec.name!r} does not have the values of its shape {list(spec.shape)}") from None
