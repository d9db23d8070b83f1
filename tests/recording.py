"""A server that records every byte it is sent, and misbehaves as it is told to."""

from __future__ import annotations

import contextlib
import io
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato import wire
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.device import Client, prepare
from tiny import LABELS, PREPROCESSING, SIZE, logits, obfuscate

Behaviour = Callable[["Exchange"], None]


class Exchange(socketserver.StreamRequestHandler):
    """One connection: reads requests and hands them to the server's behaviour."""

    server: RecordingServer
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while self._read():
                self.server.behaviours.get(self.path.rsplit("/", 1)[-1], respond_well)(self)

    def _read(self) -> bool:
        first = self._record(self.rfile.readline())
        if not first:
            return False
        self.method, self.path, _ = first.decode().split(" ", 2)
        self.server.paths.append(self.path)
        self.headers = {}
        while line := self._record(self.rfile.readline()).decode().strip():
            key, _, value = line.partition(":")
            self.headers[key.lower()] = value.strip()
        self.body = self._record(self.rfile.read(int(self.headers.get("content-length", 0))))
        return True

    def _record(self, data: bytes) -> bytes:
        self.server.recorded += data
        return data

    def reply(self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}"]
        lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
        self.wfile.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


class RecordingServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, **behaviours: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.behaviours = behaviours
        self.recorded = bytearray()
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def recording(**behaviours: Behaviour) -> Iterator[RecordingServer]:
    """Behaviours by the last part of the path: `infer`, `tiny` (the model's metadata), `v2` (the server's), `ready`."""
    with RecordingServer(**behaviours) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


def metadata(**changes: Any) -> bytes:
    value = {
        "name": "tiny",
        "versions": ["1"],
        "platform": "test",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, SIZE, SIZE]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, len(LABELS)]}],
        **changes,
    }
    return json.dumps(value).encode()


def respond_well(exchange: Exchange) -> None:
    if exchange.path.endswith("/infer"):
        respond_with(lambda inputs: logits(inputs))(exchange)
    elif "/models/" in exchange.path:
        exchange.reply(200, metadata())
    else:
        exchange.reply(200, b'{"name": "fake", "version": "1", "extensions": ["binary_tensor_data"]}')


def respond_with(compute: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Behaviour:
    def behave(exchange: Exchange) -> None:
        request = wire.decode_request(exchange.body, exchange.headers.get(wire.HEADER_LENGTH.lower()))
        output = wire.Tensor("logits", compute(request.inputs[0].array))
        encoded = wire.encode_response(wire.InferResponse("tiny", (output,)), request)
        headers = {key.replace("-", "_"): value for key, value in encoded.headers().items()}
        exchange.reply(200, encoded.body, **headers)

    return behave


def traces(pixels: NDArray[np.uint8], preprocessing: Preprocessing = PREPROCESSING) -> dict[str, list[bytes]]:
    """The forms in which an image of the right size could leak."""
    unit = prepare(pixels, preprocessing)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    whole = {
        "uint8 HWC": pixels.tobytes(),
        "uint8 CHW": pixels.transpose(2, 0, 1).tobytes(),
        "float32 CHW": unit.tobytes(),
        "float32 HWC": unit.transpose(1, 2, 0).tobytes(),
        "normalised": ((unit - mean) / std).tobytes(),
        "json": json.dumps(unit.ravel().tolist(), separators=(",", ":")).encode(),
        "png": png.getvalue()[40:],
    }
    # Pieces as well, so that a part of the image is enough.
    return {form: [data[i : i + 24] for i in range(0, len(data) - 24, 24)] for form, data in whole.items()}


def leaked(recorded: bytes, pixels: NDArray[np.uint8], preprocessing: Preprocessing = PREPROCESSING) -> set[str]:
    """The forms in which a piece of the image is among the bytes."""
    return {
        form for form, pieces in traces(pixels, preprocessing).items() if any(piece in recorded for piece in pieces)
    }


def client(server: RecordingServer, bundle: Bundle, **options: Any) -> Client:
    return Client(server.url, bundle, **{"retries": 0, "timeout_s": 2.0, **options})


def softmax(values: NDArray[Any]) -> NDArray[Any]:
    exponentials = np.exp(values.astype(np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


def expected_probabilities(pixels: NDArray[np.uint8]) -> NDArray[Any]:
    return softmax(logits(obfuscate(prepare(pixels, PREPROCESSING)[None])))[0]
