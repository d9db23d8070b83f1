"""Traces with OpenTelemetry: a span for each request on either side, joined by the W3C header `traceparent`.

Without OpenTelemetry in the process, nothing is done, imported or sent. With it, spans hold the model's name and
version, the status and the number of images: nothing of an image, a prediction, an address or a token.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""The variables with which OpenTelemetry names a collector."""
_TIMEOUTS = ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
_TIMEOUT_S = 2.0
"""For one export, and so for the last one, at the end of a process, if the collector does not respond."""
_HEADER = "traceparent"
SERVICE = "sfumato-server"
"""What the server is called in traces."""
_LOG = logging.getLogger(__name__)


def _tracer() -> Any:
    """Return a tracer if this process records traces; None if not, which costs less than a microsecond."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider) else _tracer_of(provider)


@lru_cache(maxsize=4)
def _tracer_of(provider: Any) -> Any:
    return provider.get_tracer("sfumato")


@contextlib.contextmanager
def client_span(images: int) -> Iterator[None]:
    """Record the sending of images, and what comes back, as a span of a client."""
    tracer = _tracer()
    if tracer is None:
        yield
        return
    from opentelemetry.trace import SpanKind, StatusCode

    how: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}  # messages may quote a server
    with tracer.start_as_current_span(
        "infer", kind=SpanKind.CLIENT, attributes={"sfumato.images": images}, **how
    ) as span:
        try:
            yield
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
            raise


def trace_headers() -> dict[str, str]:
    """Return the headers that join a request to the span in progress: `traceparent`, which holds random numbers.

    `tracestate` and `baggage` stay here: a program may have put anything there.
    """
    if _tracer() is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return {name: value for name, value in carrier.items() if name == _HEADER}


def record_inference(
    headers: Mapping[bytes, bytes], *, model: str, version: str, images: int, status: int, seconds: float
) -> None:
    """Record a request that a server has just finished, as a span below that of its client, if the client has one.

    Args:
        headers: the request's, in lower case.
        model: its name.
        version: its version.
        images: rows of the request.
        status: of the response over HTTP; 499 if the client has hung up.
        seconds: how long it took.
    """
    tracer = _tracer()
    if tracer is None:
        return
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    names = (_HEADER, "tracestate")
    carrier = {name: headers[name.encode()].decode("latin-1") for name in names if name.encode() in headers}
    now_ns = time.time_ns()
    span = tracer.start_span(
        f"infer {model}",
        context=TraceContextTextMapPropagator().extract(carrier),
        kind=SpanKind.SERVER,
        start_time=now_ns - int(seconds * 1e9),
        attributes={
            "http.request.method": "POST",
            "http.response.status_code": status,
            "sfumato.model.name": model,
            "sfumato.model.version": version,
            "sfumato.images": images,
        },
    )
    if status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end(now_ns)


def start_exporting(service: str) -> None:
    """Send this process's traces to the collector that OpenTelemetry's own variables name; without one do nothing.

    Spans wait in memory, 2,048 at most, and a thread sends them. If the collector is down they are dropped, and the log
    says so once.

    Args:
        service: what the process is called there, unless `OTEL_SERVICE_NAME` says otherwise.
    """
    if not any(map(os.environ.get, _ENDPOINTS)) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    if importlib.util.find_spec("opentelemetry") is None:
        _LOG.warning("nothing is traced: OpenTelemetry is not installed; run: pip install 'sfumato[otel]'")
        return
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        _LOG.warning("nothing is traced: %s is not installed; run: pip install 'sfumato[otel]'", error.name)
        return
    if _tracer() is not None:  # somebody else has set it up, such as `opentelemetry-instrument`
        return
    exporter = _exporter()
    if exporter is None:
        return
    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(name))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def _exporter() -> Any:
    """Return OpenTelemetry's exporter, which says once that it fails; None, and say it, if it cannot be made."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it would say for every batch that one failed
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import SpanExportResult

        class Exporter(OTLPSpanExporter):  # type: ignore[misc, unused-ignore]
            said = False

            def export(self, spans: Any) -> Any:
                try:
                    result = super().export(spans)
                except Exception:  # whatever it is, serving goes on
                    result = SpanExportResult.FAILURE
                if result is not SpanExportResult.SUCCESS and not self.said:
                    self.said = True
                    _LOG.warning("the collector of OpenTelemetry does not take traces; they are dropped")
                return result

        given = any(map(os.environ.get, _TIMEOUTS))
        return Exporter() if given else Exporter(timeout=_TIMEOUT_S)
    except ImportError as error:
        _LOG.warning("nothing is traced: %s is not installed; run: pip install 'sfumato[otel]'", error.name)
    except Exception as error:  # a variable with nonsense
        _LOG.warning("nothing is traced: OpenTelemetry cannot be set up (%s); check OTEL_...", type(error).__name__)
    return None
