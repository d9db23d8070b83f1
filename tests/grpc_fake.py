"""A gRPC server that records every byte it is sent, and misbehaves as it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from sfumato.artifacts.bundle import Bundle
from sfumato.device import Client
from tiny import LABELS, SIZE, logits

Behaviour = Callable[[Any, Any], Any]


class FakeServer:
    """A server behind a relay that writes down every byte it is sent."""

    def __init__(self, behaviours: dict[str, Behaviour], tls: Any) -> None:
        self.behaviours = behaviours
        self.calls: list[str] = []
        self.connects_after_s = 0.0
        self.metadata: dict[str, str] = {}
        self.recorded = bytearray()
        self._server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._servicer(), self._server)
        add = self._server.add_insecure_port if tls is None else lambda at: self._server.add_secure_port(at, tls)
        self._behind = add("127.0.0.1:0")
        self._server.start()
        self._front = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._relay, daemon=True).start()

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self._front.getsockname()[1]}"

    def close(self) -> None:
        self._front.close()
        self._server.stop(None)

    def _servicer(self) -> Any:
        def answering(name: str) -> Behaviour:
            def prediction(request: Any, context: Any) -> Any:
                self.calls.append(name)
                self.metadata = dict(context.invocation_metadata())
                return self.behaviours.get(name, GOOD[name])(request, context)

            return prediction

        return type("Servicer", (), {name: staticmethod(answering(name)) for name in _METHODS})()

    def _relay(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._front.accept()
                time.sleep(self.connects_after_s)
                far = socket.create_connection(("127.0.0.1", self._behind))
                threading.Thread(target=_pump, args=(near, far, self.recorded), daemon=True).start()
                threading.Thread(target=_pump, args=(far, near, bytearray()), daemon=True).start()


_METHODS = [name for name in vars(service_pb2_grpc.GRPCInferenceServiceServicer) if name[0] != "_"]


def _pump(source: socket.socket, target: socket.socket, record: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            record += data
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def metadata(datatype: str = "FP32", shape: tuple[int, ...] = (-1, 3, SIZE, SIZE)) -> Behaviour:
    def prediction(request: Any, context: Any) -> Any:
        told = service_pb2.ModelMetadataResponse(name=request.name, versions=["1"], platform="test")
        told.inputs.add(name="input", datatype=datatype, shape=shape)
        told.outputs.add(name="logits", datatype="FP32", shape=[-1, len(LABELS)])
        return told

    return prediction


def respond_with(compute: Callable[[Any], Any], *, typed: bool = False) -> Behaviour:
    def prediction(request: Any, context: Any) -> Any:
        kinds = {"FP32": "<f4", "FP16": "<f2"}
        x = np.frombuffer(request.raw_input_contents[0], kinds[request.inputs[0].datatype])
        values = compute(x.reshape(list(request.inputs[0].shape)).astype(np.float32))
        kind = "FP32" if values.dtype.kind == "f" else "INT64"
        prediction = service_pb2.ModelInferResponse(model_name=request.model_name)
        output = prediction.outputs.add(name="logits", datatype=kind, shape=values.shape)
        if typed:
            output.contents.fp32_contents.extend(values.ravel().tolist())
        else:
            prediction.raw_output_contents.append(values.tobytes())
        return prediction

    return prediction


GOOD: dict[str, Behaviour] = {
    "ServerReady": lambda request, context: service_pb2.ServerReadyResponse(ready=True),
    "ModelMetadata": metadata(),
    "ModelInfer": respond_with(logits),
}


@contextlib.contextmanager
def serving(tls: Any = None, **behaviours: Behaviour) -> Iterator[FakeServer]:
    server = FakeServer(behaviours, tls)
    try:
        yield server
    finally:
        server.close()


def client(server: FakeServer, bundle: Bundle, **options: Any) -> Client:
    return Client(server.url, bundle, **{"retries": 0, "timeout_s": 2.0, **options})
