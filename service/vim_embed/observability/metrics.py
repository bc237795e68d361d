"""Prometheus metrics of one service; docs/metrics.md lists them. The queue and the routes report
here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from vim_embed.batching.interface import RowQueue
from vim_embed.batching.request import BatchKey, Embedded
from vim_embed.batching.worker import Cause
from vim_embed.engines.interface import ModelStatus
from vim_embed.observability.activity import Activity
from vim_embed.observability.utilisation import Utilisation

REFUSALS = (
    "unauthorized", "payload_too_large", "queue_full", "client_share", "not_ready", "draining",
)  # fmt: skip
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Totals:
    """What one model did since the start: counts, and seconds summed over requests (batches for
    `stage_seconds`)."""

    requests: float
    failures: float
    rows: float
    batches: float
    request_seconds: float
    queue_seconds: float
    compute_seconds: float
    stage_seconds: float


class Metrics:
    """Counters, histograms and gauges; a `batching.observer.Observer`.

    Counted per request: `embed_seconds` = `queue_seconds` + `compute_seconds` +
    `overhead_seconds`, and `load_seconds` where an idle model was loaded again. Counted per batch:
    `stage_seconds`, `forward_seconds`, `batch_rows`.
    """

    def __init__(self, devices: int = 1) -> None:
        """devices: that compute here, whose time `utilisation` is a share of."""
        self.registry = CollectorRegistry()
        self.utilisation = Utilisation(devices)
        self.activity = Activity()
        self._of_http()
        self._of_requests()
        self._of_batches()
        self._of_workers()
        ratio = "Rows/s delivered over rows/s of the bare forward, over the last minute with work"
        self._gauge("overhead_ratio", ratio, lambda: self.utilisation.value)
        self.registry.register(WorkingTime(self.utilisation))
        ProcessCollector(registry=self.registry)

    def watch(
        self,
        queue: RowQueue,
        models: Callable[[], Mapping[str, ModelStatus]],
        memory: Callable[[], Mapping[tuple[str, str], int]],
        degraded: Callable[[], Mapping[str, str]],
        devices_expected: int = 0,
    ) -> None:
        """From now on ask these at every scrape; called once, when a service is put together."""
        text = "Devices that were found at the start"
        self._gauge("devices", text, lambda: len(queue.devices))
        text = "Devices that there should be; 0 where the settings do not say"
        self._gauge("devices_expected", text, lambda: devices_expected)
        text = "Devices and models that give less than the settings ask for"
        self._gauge("degraded", text, lambda: len(degraded()))
        self._gauge("waiting_rows", "Rows in the queue", lambda: queue.waiting_rows)
        text = "Bytes of the requests in the queue"
        self._gauge("waiting_bytes", text, lambda: queue.waiting_bytes)
        self.registry.register(ServiceCollector(models, memory, queue))

    def _of_http(self) -> None:
        self.requests = self._counter("requests", "Answers", "route", "status", "code")
        self.request_seconds = self._histogram(
            "request_seconds", "Seconds from request to answer", "route"
        )
        self.refusals = self._counter("refusals", "Requests refused unread or unqueued", "reason")
        for reason in REFUSALS:
            self.refusals.labels(reason)
        self.refused_connections = self._counter(
            "refused_connections", "Connections refused or broken off", "reason"
        )

    def _of_requests(self) -> None:
        self.embed_seconds = self._histogram(
            "embed_seconds", "Seconds of an embedding request, from its first byte", "model"
        )
        self.queue_seconds = self._histogram(
            "queue_seconds", "Seconds from queueing to the first forward", "model"
        )
        self.compute_seconds = self._histogram(
            "compute_seconds", "Seconds of the forwards that a request had rows in", "model"
        )
        self.overhead_seconds = self._histogram(
            "overhead_seconds", "Seconds of a request neither queued nor computing", "model"
        )
        self.load_seconds = self._histogram(
            "load_seconds", "Seconds that a request waited for an idle model", "model"
        )
        self.failures = self._counter(
            "failures", "Requests for a model that got an error", "model", "reason"
        )

    def _of_batches(self) -> None:
        self.rows = self._counter("rows", "Rows embedded", "model")
        self.batches = self._counter("batches", "Batches executed", "model")
        self.dropped_rows = self._counter(
            "dropped_rows", "Rows dropped before the forward", "model", "reason"
        )
        self.batch_rows = self._histogram("batch_rows", "Rows of a batch", "model", buckets=_ROWS)
        self.stage_seconds = self._histogram(
            "stage_seconds", "Seconds of gathering one batch and starting its copy", "model"
        )
        self.forward_seconds = self._histogram(
            "forward_seconds", "Seconds of one batch in the engine", "model"
        )

    def _of_workers(self) -> None:
        self.idle_unloads = self._counter(
            "idle_unloads", "Times that a model gave its memory back, as nobody asked", "model"
        )
        self.reloads = self._counter(
            "reloads", "Times that an idle model was loaded again", "model"
        )
        self.worker_failures = self._counter(
            "worker_failures", "Failures of a worker, each followed by a restart", "device", "cause"
        )
        self.self_checks = self._counter("self_checks", "Self-checks", "model", "result")

    # the queue's reports

    def entered(self, key: BatchKey) -> None:
        self.utilisation.entered()

    def left(self, key: BatchKey) -> None:
        self.utilisation.left()

    def staged(self, key: BatchKey, seconds: float) -> None:
        self.stage_seconds.labels(key.model).observe(seconds)

    def batch(self, key: BatchKey, rows: int, requests: int, seconds: float) -> None:
        self.utilisation.forward(seconds)
        self.activity.batch(rows)
        self.rows.labels(key.model).inc(rows)
        self.batches.labels(key.model).inc()
        self.batch_rows.labels(key.model).observe(rows)
        self.forward_seconds.labels(key.model).observe(seconds)

    def dropped(self, key: BatchKey, rows: int, reason: str) -> None:
        self.dropped_rows.labels(key.model, reason).inc(rows)

    def worker_failed(self, device: str, cause: str) -> None:
        self.worker_failures.labels(device, cause).inc()

    def checked(self, model: str, ok: bool) -> None:
        for result, happened in (("ok", ok), ("failed", not ok)):
            self.self_checks.labels(model, result).inc(happened)  # the other begins at 0

    # what idle models report

    def expect(self, models: Iterable[str], devices: Iterable[str]) -> None:
        """Begin their counts at 0, so that the first event is a rise, which alerts look for."""
        for device, cause in product(devices, get_args(Cause)):
            self.worker_failures.labels(device, cause)
        for model in models:
            self.idle_unloads.labels(model)
            self.reloads.labels(model)
            self.load_seconds.labels(model)

    def rested(self, model: str) -> None:
        self.idle_unloads.labels(model).inc()

    def loaded_again(self, model: str, seconds: float) -> None:
        self.reloads.labels(model).inc()

    # the connections' reports

    def connection_refused(self, reason: str) -> None:
        self.refused_connections.labels(reason).inc()

    # the routes' reports

    def answered(
        self, route: str, status: int, code: str, seconds: float, reason: str = ""
    ) -> None:
        """An answer went out; `code` is an error's, or empty; `reason`, where it says more."""
        self.requests.labels(route, str(status), code).inc()
        self.request_seconds.labels(route).observe(seconds)
        if (reason or code) in REFUSALS:
            self.refusals.labels(reason or code).inc()

    def embedded(self, model: str, done: Embedded, seconds: float) -> None:
        """An embedding request is answered, `seconds` after its first byte."""
        self.embed_seconds.labels(model).observe(seconds)
        self.queue_seconds.labels(model).observe(done.queue_seconds)
        self.compute_seconds.labels(model).observe(done.forward_seconds)
        if done.load_seconds:
            self.load_seconds.labels(model).observe(done.load_seconds)
        overhead = seconds - done.load_seconds - done.queue_seconds - done.forward_seconds
        self.overhead_seconds.labels(model).observe(max(0.0, overhead))

    def failed(self, model: str, reason: str) -> None:
        """A request that reached this model's queue got an error."""
        self.failures.labels(model, reason).inc()

    # reading

    def totals(self, model: str) -> Totals:
        """The sums of one model."""
        failures = [
            sample.value
            for family in self.failures.collect()
            for sample in family.samples
            if sample.name.endswith("_total") and sample.labels["model"] == model
        ]
        return Totals(
            requests=self._value("embed_seconds_count", model),
            failures=sum(failures),
            rows=self._value("rows_total", model),
            batches=self._value("batches_total", model),
            request_seconds=self._value("embed_seconds_sum", model),
            queue_seconds=self._value("queue_seconds_sum", model),
            compute_seconds=self._value("compute_seconds_sum", model),
            stage_seconds=self._value("stage_seconds_sum", model),
        )

    def text(self) -> bytes:
        """The exposition format of `GET /metrics`."""
        return generate_latest(self.registry)

    def _value(self, name: str, model: str) -> float:
        return self.registry.get_sample_value(f"vim_embed_{name}", {"model": model}) or 0.0

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vim_embed_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        return Histogram(f"vim_embed_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"vim_embed_{name}", text, registry=self.registry).set_function(value)


class WorkingTime(Collector):
    """Seconds in which some request was queued or computed."""

    def __init__(self, utilisation: Utilisation) -> None:
        self._utilisation = utilisation

    def collect(self) -> Iterator[Metric]:
        text = "Seconds in which some request was queued or computed"
        seconds = self._utilisation.working_seconds
        yield CounterMetricFamily("vim_embed_working_seconds", text, seconds)


class ServiceCollector(Collector):
    """Asks at every scrape: which models there are, how much memory they hold, who is at work."""

    def __init__(
        self,
        models: Callable[[], Mapping[str, ModelStatus]],
        memory: Callable[[], Mapping[tuple[str, str], int]],
        queue: RowQueue,
    ) -> None:
        self._models = models
        self._memory = memory
        self._queue = queue

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask a service that is still being put together."""
        return ()

    def collect(self) -> Iterator[Metric]:
        labels = ("model", "kind", "dtype", "device", "backend", "digest", "random")
        ready = GaugeMetricFamily(
            "vim_embed_model_ready", "Whether a configured model can answer", labels=("model",)
        )
        idle = GaugeMetricFamily(
            "vim_embed_model_idle",
            "Whether a model gave its memory back until the next request",
            labels=("model",),
        )
        info = GaugeMetricFamily("vim_embed_model_info", "A model that is loaded", labels=labels)
        memory = GaugeMetricFamily(
            "vim_embed_gpu_memory_bytes",
            "GPU memory of torch in this process",
            labels=("device", "state"),
        )
        up = GaugeMetricFamily(
            "vim_embed_device_up", "Whether a device's worker is at work", labels=("device",)
        )
        error = GaugeMetricFamily(
            "vim_embed_load_check_error",
            "Relative L2 error against the reference at load, of the worst image",
            labels=("model", "output"),
        )
        tolerance = GaugeMetricFamily(
            "vim_embed_load_check_tolerance",
            "What that error may be",
            labels=("model", "output"),
        )
        for name, status in self._models().items():
            ready.add_metric((name,), float(status.answers))
            idle.add_metric((name,), float(status.state == "idle"))
            if (m := status.info) is not None:
                random = str(m.weights.random).lower()
                values = (name, m.kind, m.dtype, m.device, m.backend, m.weights.digest, random)
                info.add_metric(values, 1)
                for one in m.self_check.outputs if m.self_check else ():
                    error.add_metric((name, one.what), one.error)
                    tolerance.add_metric((name, one.what), one.tolerance)
        for place, size in self._memory().items():
            memory.add_metric(place, size)
        for device, state in self._queue.devices.items():
            up.add_metric((device,), float(state == "up"))
        yield from (ready, idle, info, error, tolerance, memory, up)
