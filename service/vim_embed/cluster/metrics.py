"""Hands a process's Prometheus metrics to Ray, whose agent on each node exports them."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry
from ray import serve
from ray.util.metrics import Gauge

_PLACE = ("deployment", "replica")


class RayMetrics:
    """Every sample under its own name and labels, and the deployment and replica it is of.

    Counters and the buckets of histograms arrive as gauges that only grow, which PromQL's rate
    and histogram_quantile take as they are.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._gauges: dict[str, Gauge] = {}
        context = serve.get_replica_context()
        self._place = {"deployment": context.deployment, "replica": context.replica_tag}

    def publish(self) -> None:
        """Hand over the values of this moment."""
        for metric in self._registry.collect():
            for sample in metric.samples:
                if not sample.name.endswith("_created"):
                    gauge = self._gauge(sample.name, metric.documentation, sample.labels)
                    gauge.set(sample.value, {**sample.labels, **self._place})

    def _gauge(self, name: str, text: str, labels: Mapping[str, str]) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=text, tag_keys=(*labels, *_PLACE))
        return self._gauges[name]
