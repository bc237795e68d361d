"""Prometheus metrics of one service. The batcher and the routes report here."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vim_embed.activity import Activity
from vim_embed.batcher import BatchKey

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters and histograms; a `batcher.Observer`."""

    def __init__(self, waiting_rows: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.activity = Activity()
        self.requests = self._counter("requests", "Answers", "route", "status", "code")
        self.rows = self._counter("rows", "Rows embedded", "model")
        self.dropped_rows = self._counter(
            "dropped_rows", "Rows dropped before the forward", "model", "reason"
        )
        self.batch_rows = self._histogram("batch_rows", "Rows of a batch", "model", buckets=_ROWS)
        self.forward_seconds = self._histogram(
            "forward_seconds", "Seconds of one batch in the engine", "model"
        )
        self.queue_seconds = self._histogram(
            "queue_seconds", "Seconds from queueing to the first forward", "model"
        )
        self.request_seconds = self._histogram(
            "request_seconds", "Seconds from request to answer", "route"
        )
        waiting = Gauge("vim_embed_waiting_rows", "Rows in the queue", registry=self.registry)
        waiting.set_function(waiting_rows)

    def batch(self, key: BatchKey, rows: int, requests: int, seconds: float) -> None:
        self.activity.batch(rows)
        self.rows.labels(key.model).inc(rows)
        self.batch_rows.labels(key.model).observe(rows)
        self.forward_seconds.labels(key.model).observe(seconds)

    def dropped(self, key: BatchKey, rows: int, reason: str) -> None:
        self.dropped_rows.labels(key.model, reason).inc(rows)

    def text(self) -> bytes:
        """The exposition format of `GET /metrics`."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vim_embed_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        return Histogram(f"vim_embed_{name}", text, labels, buckets=buckets, registry=self.registry)
