"""The table's metrics as Prometheus instruments, in the registry that SGLang's `/metrics` reads.

prometheus_client must be imported after SGLang has set PROMETHEUS_MULTIPROC_DIR, so it is imported on use.
"""

from collections.abc import Collection, Mapping
from typing import Any

from sglang_layered.metrics.table import METRICS, PREFIX, Metric, Needs


class Instruments:
    """Those metrics of the table whose needs are met, each with SGLang's own labels in front of its own.

    What is written to another metric of the table is dropped. False where no need is met: nothing is written.
    """

    def __init__(
        self, base_labels: Mapping[str, Any], needs: Collection[Needs] = (), is_first: bool = False
    ) -> None:
        self._base = dict(base_labels)
        self._metrics = {
            metric.name: _make(metric, list(self._base))
            for metric in METRICS
            if metric.needs in needs and (is_first or metric.writer != "first")
        }
        self._children: dict[tuple[str, ...], Any] = {}
        for metric in METRICS:
            for values in metric.zeros if metric.labels or metric.kind != "counter" else [()]:
                self.add(metric.name, 0, **dict(zip(metric.labels, values, strict=True)))

    def __bool__(self) -> bool:
        return bool(self._metrics)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        if (child := self._child(name, labels)) is not None:
            child.inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        if (child := self._child(name, labels)) is not None:
            child.set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one value to a histogram."""
        if (child := self._child(name, labels)) is not None:
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
