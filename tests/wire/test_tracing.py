"""Traces: what spans hold and what not, how client and server are joined, and what a collector that is down costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from recording import recording
from sfumato.artifacts.bundle import Bundle
from sfumato.cloud import ServedModel, running
from sfumato.device import AsyncClient, Client
from sfumato.errors import EndpointError
from sfumato.wire import tracing

IMAGE = np.arange(tiny.SIZE * tiny.SIZE * 3, dtype=np.uint8).reshape(tiny.SIZE, tiny.SIZE, 3)
TOKEN = "top-secret-token"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An exporter that keeps what is traced in this process."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield kept
    provider.shutdown()


def test_a_span_on_either_side_in_one_trace_and_nothing_of_the_image(spans, tiny_bundles):
    obfuscator, classifier = tiny_bundles
    model = ServedModel(classifier.path)
    with running([model], token=TOKEN) as url, Client(url, obfuscator, token=TOKEN) as client:
        predictions = client.classify_batch([IMAGE] * 3)
    server, ours = sorted(spans.get_finished_spans(), key=lambda span: span.kind.name, reverse=True)
    assert (server.kind.name, ours.kind.name) == ("SERVER", "CLIENT")
    assert server.parent.span_id == ours.context.span_id and server.context.trace_id == ours.context.trace_id
    assert ours.start_time <= server.start_time < server.end_time <= ours.end_time
    assert dict(ours.attributes) == {"sfumato.images": 3}
    assert dict(server.attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "sfumato.model.name": model.name,
        "sfumato.model.version": "1",
        "sfumato.images": 3,
    }
    said = "".join(span.to_json() for span in (server, ours))
    assert not any(word in said for word in (TOKEN, predictions[0].label, "127.0.0.1"))


def test_images_of_many_lie_below_the_callers_span(spans, tiny_bundles):
    from opentelemetry import trace

    obfuscator, classifier = tiny_bundles
    program = trace.get_tracer_provider().get_tracer("program")
    with (
        running([ServedModel(classifier.path)]) as url,
        Client(url, obfuscator) as client,
        program.start_as_current_span("frame") as frame,
    ):
        assert len(list(client.classify_many([IMAGE] * 4))) == 4
    ours = [span for span in spans.get_finished_spans() if span.kind.name == "CLIENT"]
    assert len(ours) == 4 and {span.parent.span_id for span in ours} == {frame.get_span_context().span_id}


def test_each_task_of_asyncio_has_a_span_of_its_own(spans, tiny_bundles):
    pytest.importorskip("aiohttp")
    obfuscator, classifier = tiny_bundles

    async def classify(url: str) -> None:
        async with AsyncClient(url, obfuscator) as client:
            await asyncio.gather(*(client.classify(IMAGE) for _ in range(4)))

    with running([ServedModel(classifier.path)]) as url:
        asyncio.run(classify(url))
    found = spans.get_finished_spans()
    ours = {span.context.span_id for span in found if span.kind.name == "CLIENT"}
    assert len(ours) == 4 and {span.parent.span_id for span in found if span.kind.name == "SERVER"} == ours


def test_the_device_sends_random_numbers_alone(spans, obfuscator_bundle):
    """Baggage and `tracestate` of the program stay where they are."""
    from opentelemetry import baggage, context, trace

    state = trace.TraceState([("vendor", "a-persons-name")])
    above = trace.SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(1), trace_state=state)
    token = context.attach(
        trace.set_span_in_context(trace.NonRecordingSpan(above), baggage.set_baggage("who", "a-persons-name"))
    )
    try:
        with recording() as endpoint, Client(endpoint.url, obfuscator_bundle) as client:
            client.classify(IMAGE)
    finally:
        context.detach(token)
    sent = bytes(endpoint.recorded)
    assert b"traceparent: 00-" + f"{0xABC:032x}-".encode() in sent.lower()
    assert b"a-persons-name" not in sent and b"baggage" not in sent.lower()


def test_an_error_has_its_kind_and_no_message(spans, obfuscator_bundle):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(EndpointError), Client(url, obfuscator_bundle, retries=0) as client:
        client.classify(IMAGE)
    (span,) = spans.get_finished_spans()
    assert span.attributes["error.type"] == "EndpointUnreachable" and not span.events
    assert span.status.status_code.name == "ERROR" and not span.status.description


@pytest.mark.parametrize("header", ["", "nonsense", "00-0-0-01", "00-" + "f" * 400, "ÿ"])
def test_a_header_of_nonsense_begins_a_trace(spans, classifier_bundle, header):
    tracing.record_inference(
        {b"traceparent": header.encode("latin-1")}, model="m", version="1", images=1, status=503, seconds=0.5
    )
    (span,) = spans.get_finished_spans()
    assert span.parent is None and span.status.status_code.name == "ERROR"
    assert 0.4e9 < span.end_time - span.start_time < 0.6e9


def test_without_opentelemetry_nothing_happens(obfuscator_bundle, monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    with recording() as endpoint, Client(endpoint.url, obfuscator_bundle) as client:
        client.classify(IMAGE)
    assert b"traceparent" not in bytes(endpoint.recorded).lower()
    tracing.start_exporting("x")
    assert "opentelemetry.trace" not in sys.modules, "nothing is loaded unless a collector is named"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tracing.start_exporting("x")
    assert "pip install 'sfumato[otel]'" in caplog.text


@contextlib.contextmanager
def collector(received: list[bytes], *, responds: bool) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            if not responds:
                time.sleep(30)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def classify(bundle: Bundle, image: Path, url: str, endpoint: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Runs `sfumato classify` in a process of its own; returns its seconds, too."""
    command = [sys.executable, "-m", "sfumato", "classify", str(image), "--bundle", str(bundle.path), "--server", url]
    start = time.monotonic()
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, env=environment)
    return time.monotonic() - start, done


@pytest.mark.parametrize("state", ["up", "down", "silent", "nonsense"])
def test_a_collector_changes_nothing_whatever_its_state(state, tiny_bundles, tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from PIL import Image

    obfuscator, classifier = tiny_bundles
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    received: list[bytes] = []
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(running([ServedModel(classifier.path)]))
        endpoint = {"down": "http://127.0.0.1:9", "nonsense": "no:address"}.get(state)
        endpoint = endpoint or stack.enter_context(collector(received, responds=state == "up"))
        seconds, done = classify(obfuscator, tmp_path / "a.png", url, endpoint)
    assert done.returncode == 0 and len(json.loads(done.stdout)["predictions"]) == 1, done.stderr
    assert bool(received) == (state in ("up", "silent"))
    if state == "up":
        assert b"sfumato-device" in received[0] and b"infer" in received[0] and done.stderr == ""
    else:
        (line,) = done.stderr.splitlines()
        assert "are dropped" in line or "nothing is traced" in line
    assert seconds < 30
