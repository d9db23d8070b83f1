"""The content of `GET /metrics`, in Prometheus' text format: counts and times, nothing of images or clients.

Replicas on one machine exchange theirs, so that scraping one of them returns those of all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from sfumato.cloud.dataplane import ServedModel

CONTENT_TYPE = CONTENT_TYPE_LATEST
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TIMEOUT_S = 2.0
_BATCH_BUCKETS = 11  # 1, 2, 4, ... 1024 rows
_LABELS = ["model", "version"]


class Metrics:
    """All counts, and what is read at a scrape: the served models, and the bytes of requests in memory."""

    def __init__(self, models: Callable[[], Iterable[ServedModel]], held_bytes: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sfumato_requests", "Requests by model, version and HTTP status; no model: all that is no inference.",
            [*_LABELS, "status"], registry=self._registry,
        )  # fmt: skip
        self._images = Counter("sfumato_images", "Rows of successful requests.", _LABELS, registry=self._registry)
        self._seconds = Histogram(
            "sfumato_request_seconds", "From the request's head to the response, of successful requests.", _LABELS,
            buckets=LATENCY_BUCKETS_S, registry=self._registry,
        )  # fmt: skip
        self._models = models
        self._held_bytes = held_bytes
        self._registry.register(_Collected(self._gauges))
        self._known: dict[tuple[str, str, int], tuple[Counter, tuple[Counter, Histogram] | None]] = {}

    def count(self, model: ServedModel | None, status: int, rows: int, seconds: float) -> None:
        """Count one request: its model, if any, its HTTP status, its rows if it succeeded, and how long it took."""
        name, version = (model.name, model.version) if model is not None else ("", "")
        known = self._known.get((name, version, status))
        if known is None:
            measured = (self._images.labels(name, version), self._seconds.labels(name, version)) if name else None
            known = self._known[name, version, status] = self._requests.labels(name, version, str(status)), measured
        counter, measured = known
        counter.inc()
        if measured is not None and status == 200:
            measured[0].inc(rows)
            measured[1].observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _gauges(self) -> Iterator[Metric]:
        """Read what there is at the time of a scrape."""
        waiting = GaugeMetricFamily("sfumato_queue_requests", "Requests that wait for the model.", labels=_LABELS)
        rows = GaugeMetricFamily("sfumato_queue_rows", "Rows that wait for the model.", labels=_LABELS)
        batches = HistogramMetricFamily("sfumato_batch_rows", "Rows in one run of the model.", labels=_LABELS)
        for model in self._models():
            labels = [model.name, model.version]
            for gauge, value in zip((waiting, rows), model.batcher.queue, strict=True):
                gauge.add_metric(labels, value)
            runs, sizes = model.batcher.runs, range(_BATCH_BUCKETS)
            buckets = [(str(float(2**power)), float(sum(runs[k] for k in range(power + 1)))) for power in sizes]
            batches.add_metric(labels, [*buckets, ("+Inf", float(runs.total()))], float(model.batcher.rows))
        yield from (waiting, rows, batches)
        yield GaugeMetricFamily("sfumato_held_bytes", "Bytes of requests in memory.", value=self._held_bytes())


class _Collected(Collector):
    """What a function gives, as Prometheus' client wants it."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


class Siblings:
    """One replica among its siblings; each has a socket called by its number in a folder of this user's."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number

    @contextlib.asynccontextmanager
    async def sharing(self, text: Callable[[], bytes]) -> AsyncIterator[None]:
        """Return `text()` to siblings that ask, until the block ends."""

        async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):  # the sibling has hung up
                writer.write(text())
                await writer.drain()
            writer.close()

        own = self._folder / str(self._number)
        own.unlink(missing_ok=True)  # of a process that died
        server = await asyncio.start_unix_server(reply, own)
        try:
            yield
        finally:
            server.close()

    async def merged(self, own: bytes) -> bytes:
        """Return the metrics of all replicas that respond, each with its number as the label `replica`."""
        others = [path for path in sorted(self._folder.iterdir()) if path.name != str(self._number)]
        texts = await asyncio.gather(*(_ask(path) for path in others))
        texts_of = {str(self._number): own, **{path.name: text for path, text in zip(others, texts, strict=True)}}
        merged = _merged({number: texts_of[number].decode() for number in sorted(texts_of)})
        registry = CollectorRegistry()
        registry.register(_Collected(lambda: merged))
        return generate_latest(registry)


def _merged(texts: dict[str, str]) -> Iterable[Metric]:
    """Return families of the same name as one, because Prometheus wants their samples together."""
    families: dict[str, Metric] = {}
    for number, text in texts.items():
        try:
            own = list(text_string_to_metric_families(text))
        except ValueError:  # it died while it was writing
            continue
        for family in own:
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known.samples += [sample._replace(labels={"replica": number, **sample.labels}) for sample in family.samples]
    return families.values()


async def _ask(path: Path) -> bytes:
    """Return a sibling's metrics; nothing if it is gone or does not respond."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""
