"""A studio on a real socket, with a tap between the browser and the server."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato.studio import assets

RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


class Tap:
    """Stands between a browser and a server, and writes down every byte that the browser sends."""

    def __init__(self, server: str) -> None:
        host, port = server.removeprefix("http://").split(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.recorded = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    def requests(self, method: bytes, path: bytes = b"") -> int:
        """How many requests there were."""
        return self.recorded.count(method + b" /" + path)

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                browser, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                threading.Thread(target=self._pass_on, args=(browser, server, self.recorded), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, browser, None), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket, record: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                if record is not None:
                    record += data  # before anybody can have an answer to it
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """ONNX Runtime Web as the build stores it, with other content: what is handed out is not looked at here."""
    folder = tmp_path_factory.mktemp("onnxruntime-web")
    for name in RUNTIME_FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress(f"content of {name}".encode()))
        (folder / f"{name}.br").write_bytes(b"as if compressed by brotli")
    (folder / "version.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assets, "RUNTIME", folder)
        yield folder
