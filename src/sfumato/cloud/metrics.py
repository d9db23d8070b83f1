"""The content of `GET /metrics`, in Prometheus' text format: counts and times, nothing of images or clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sfumato.cloud.dataplane import ServedModel

CONTENT_TYPE = CONTENT_TYPE_LATEST
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_BUCKETS = 11  # 1, 2, 4, ... 1024 rows
_LABELS = ["model", "version"]


class Meter:
    """Counts the requests to one version of a model; its name is "" for requests to no model."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._requests = metrics.requests
        self._labels = (model, version)
        self._by_status: dict[int, Counter] = {}
        self._images = metrics.images.labels(model, version) if model else None
        self._seconds = metrics.seconds.labels(model, version) if model else None

    def count(self, status: int, rows: int, seconds: float) -> None:
        """Count one request: its HTTP status, its rows if it succeeded, and how long it took."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._by_status[status] = self._requests.labels(*self._labels, str(status))
        counter.inc()
        if self._images is not None and self._seconds is not None and status == 200:
            self._images.inc(rows)
            self._seconds.observe(seconds)


class Metrics:
    """All counts, and what is read at a scrape: the served models, and the bytes of requests in memory."""

    def __init__(self, models: Callable[[], Iterable[ServedModel]], held_bytes: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "sfumato_requests", "Requests by model, version and HTTP status; no model: all that is no inference.",
            [*_LABELS, "status"], registry=self._registry,
        )  # fmt: skip
        self.images = Counter("sfumato_images", "Rows of successful requests.", _LABELS, registry=self._registry)
        self.seconds = Histogram(
            "sfumato_request_seconds", "From the request's head to the response, of successful requests.", _LABELS,
            buckets=LATENCY_BUCKETS_S, registry=self._registry,
        )  # fmt: skip
        self._registry.register(_Now(models, held_bytes))
        self._meters: dict[tuple[str, str], Meter] = {}

    def of(self, model: ServedModel | None) -> Meter:
        """Return the counters of a model; of None, those of requests to no model."""
        key = (model.name, model.version) if model is not None else ("", "")
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = Meter(self, *key)
        return meter

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Now(Collector):
    """Gauges, which are read at the time of a scrape."""

    def __init__(self, models: Callable[[], Iterable[ServedModel]], held_bytes: Callable[[], int]) -> None:
        self._models = models
        self._held_bytes = held_bytes

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("sfumato_queue_requests", "Requests that wait for the model.", labels=_LABELS)
        rows = GaugeMetricFamily("sfumato_queue_rows", "Rows that wait for the model.", labels=_LABELS)
        batches = HistogramMetricFamily("sfumato_batch_rows", "Rows in one run of the model.", labels=_LABELS)
        for model in self._models():
            labels = [model.name, model.version]
            for gauge, value in zip((waiting, rows), model.batcher.queue, strict=True):
                gauge.add_metric(labels, value)
            batches.add_metric(labels, *_histogram(model))
        yield from (waiting, rows, batches)
        yield GaugeMetricFamily("sfumato_held_bytes", "Bytes of requests in memory.", value=self._held_bytes())


def _histogram(model: ServedModel) -> tuple[list[tuple[str, float]], float]:
    """Return the batcher's runs as cumulative buckets, and their sum."""
    runs = model.batcher.runs
    buckets = [(str(float(2**power)), float(sum(runs[k] for k in range(power + 1)))) for power in range(_BATCH_BUCKETS)]
    return [*buckets, ("+Inf", float(runs.total()))], float(model.batcher.rows)
