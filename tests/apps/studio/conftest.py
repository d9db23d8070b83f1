"""A studio on a real socket, a headless browser, and a tap between the two."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.studio.browsing import CHROMIUM, FLAGS, open_page
from sfumato import cloud
from sfumato.apps.studio import Pages, assets, collect
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle

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
                    record += data  # before anything can respond to it
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium was found: install Debian's chromium")
    if not (assets.RUNTIME / "version.json").is_file():
        pytest.skip("ONNX Runtime Web is not built in: npm was missing when sfumato was installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def bundles() -> list[Bundle]:
    """The shipped obfuscators: the default, with a gate, and the paper's, without."""
    paths = (shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle())
    return [Bundle.load(path, kind="obfuscator") for path in paths]


@pytest.fixture(scope="module")
def server(browser: Any, bundles: list[Bundle]) -> Iterator[str]:
    classifier = Bundle.load(shipped.classifier_bundle())
    with cloud.running([cloud.ServedModel(classifier.path)], pages=Pages(collect(bundles, classifier))) as url:
        yield url


@pytest.fixture
def tap(server: str) -> Iterator[Tap]:
    tap = Tap(server)
    yield tap
    tap.close()


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    page, _ = open_page(browser, server)
    yield page
    page.context.close()


@pytest.fixture(scope="module")
def bench(browser: Any, server: str) -> Any:
    """A page that tests of the module share: they leave nothing behind."""
    return open_page(browser, server)[0]
