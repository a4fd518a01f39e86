"""The metrics, as Prometheus knows them. Names are a contract: docs/serving.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from odn_hybrid.errors import ConfigError

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError:
    raise ConfigError(
        "the server's metrics need prometheus-client: pip install 'odn-hybrid[serve]'"
    ) from None

__all__ = ["OTHER", "Bounded", "Gauge", "Gauges", "Metrics", "Shown", "resident_bytes"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
OTHER = "other"


class Metrics:
    """Counters and histograms; what can be read off at any time is a gauge of `Gauges`.

    Attributes:
        registry: of its own, so that several servers fit in one process.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.process = ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        self.seconds = histogram(
            "odn_request_seconds", "From a request's arrival to its answer.", SECONDS, "model"
        )
        self.requests = counter("odn_requests_answered", "Requests answered.", "model")
        self.images = counter("odn_images_answered", "Images answered.", "model")
        self.certified = counter(
            "odn_images_certified", "Images answered as the certificate speaks of.", "model"
        )
        self.units = counter("odn_units_run", "Units run for the images answered.", "model")
        self.exits = counter("odn_exits", "Images answered, by the exit where they stopped.", "model", "exit")
        self.refusals = counter("odn_refusals", "Requests refused.", "model", "why")
        self.batches = histogram(
            "odn_batch_images", "Images that a segment (from 0) ran on at once.", BATCHES, "model", "segment"
        )
        self.busy = counter(
            "odn_device_busy_seconds", "Seconds that segments (from 0) took.", "model", "segment"
        )
        self.unwatched = counter(
            "odn_drift_left_out", "Requests that the drift monitor was not shown.", "model", "why"
        )
        self.responses = counter("odn_http_responses", "HTTP responses.", "status")
        self.errors = counter("odn_watch_errors", "Events lost by an error of the watch itself.")


class Bounded:
    """The children of one metric by their labels: found quickly, and no more than so many.

    Whatever comes beyond counts as "other": labels are names of ours, but nobody should be able to fill a
    server's memory by inventing some.
    """

    def __init__(self, metric: Any, most: int = 1024) -> None:
        self._metric, self._most = metric, most
        self._children: dict[tuple[object, ...], Any] = {}

    def __call__(self, *labels: object) -> Any:
        """The child of these labels."""
        child = self._children.get(labels)
        if child is None:
            if len(self._children) >= self._most:
                return self._metric.labels(*[OTHER] * len(labels))
            child = self._children[labels] = self._metric.labels(*map(str, labels))
        return child


#: A gauge (or a counter, "..._total"): name, help, names of its labels, rows of label values and number.
Gauge = tuple[str, str, tuple[str, ...], Iterable[tuple[tuple[str, ...], float]]]


class Shown:
    """A registry as it is shown: without the times at which each series began, which double its length."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Any]:
        """The families of metrics."""
        for family in self._registry.collect():
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family


class Gauges(Collector):
    """What is read when Prometheus asks."""

    def __init__(self, read: Callable[[], Iterable[Gauge]]) -> None:
        self._read = read

    def describe(self) -> list[Any]:
        """Nothing, so that registering does not read."""
        return []

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """See the class."""
        for name, text, labels, rows in self._read():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(name, text, labels=labels)
            for values, number in rows:
                family.add_metric(values, number)
            yield family


def resident_bytes(metrics: Metrics) -> int | None:
    """Memory of this process; None where the system does not tell."""
    for family in metrics.process.collect():
        if family.name == "process_resident_memory_bytes":
            return int(family.samples[0].value)
    return None
