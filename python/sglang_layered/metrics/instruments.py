"""The table's metrics as Prometheus instruments, in the registry that SGLang's `/metrics` reads.

prometheus_client must be imported after SGLang has set PROMETHEUS_MULTIPROC_DIR, so it is imported on use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from sglang_layered.metrics.table import METRICS, PREFIX, Metric, Needs


class Instruments(Protocol):
    """Where metrics are written to; a name is one of the table's."""

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one value to a histogram."""


class NoInstruments:
    """This process writes no metrics."""

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add nothing."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set nothing."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Observe nothing."""


class PrometheusInstruments:
    """Those metrics of the table whose needs are met, each with SGLang's own labels in front of its own."""

    def __init__(self, base_labels: Mapping[str, Any], needs: Collection[Needs], is_first: bool) -> None:
        self._base = dict(base_labels)
        self._metrics = {
            metric.name: _make(metric, list(self._base))
            for metric in METRICS
            if metric.needs in needs and (is_first or metric.writer != "first")
        }
        self._children: dict[tuple[str, ...], Any] = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        child = self._child(name, labels)
        if child is not None:
            child.inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        child = self._child(name, labels)
        if child is not None:
            child.set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one value to a histogram."""
        child = self._child(name, labels)
        if child is not None:
            child.observe(value)

    def _child(self, name: str, labels: dict[str, str]) -> Any:
        key = (name, *labels.values())
        child = self._children.get(key)
        if child is None and name in self._metrics:
            child = self._children[key] = self._metrics[name].labels(**self._base, **labels)
        return child


def _make(metric: Metric, base_labels: list[str]) -> Any:
    from prometheus_client import Counter, Gauge, Histogram

    name, labels = PREFIX + metric.name, [*base_labels, *metric.labels]
    match metric.kind:
        case "counter":
            return Counter(name, metric.help, labels)
        case "gauge":
            return Gauge(name, metric.help, labels, multiprocess_mode="mostrecent")
        case "histogram":
            return Histogram(name, metric.help, labels, buckets=metric.buckets)
