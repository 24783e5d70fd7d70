"""Prometheus metrics of what an operator must not miss: the mode in force, and dropped cohorts.

They live in SGLang's own registry and `/metrics`, with its label names. Only rank 0 records, as in SGLang.
"""

from __future__ import annotations

from typing import Any, Protocol


class ModeMetrics(Protocol):
    """Counts drops and changes of mode."""

    def dropped(self, reason: str) -> None:
        """A cohort left before its last group."""

    def mode_changed(self, mode: str, reason: str) -> None:
        """The server goes on in another mode."""


class NoMetrics:
    """Metrics are off."""

    def dropped(self, reason: str) -> None:
        """Count nothing."""

    def mode_changed(self, mode: str, reason: str) -> None:
        """Count nothing."""


class PrometheusMetrics:
    """`sglang:layered_prefill_active`, `sglang:layered_mode_changes`, `sglang:layered_dropped_cohorts`."""

    def __init__(self, labels: dict[str, str]) -> None:
        from prometheus_client import Counter, Gauge

        names = list(labels)
        self._labels = labels
        self._active = Gauge(
            "sglang:layered_prefill_active",
            "1 while prompts run layer group by layer group, 0 while they go chunk by chunk.",
            names,
            multiprocess_mode="mostrecent",
        )
        self._changes = Counter(
            "sglang:layered_mode_changes_total",
            "Changes of the prefill mode on the running server, by reason.",
            [*names, "mode", "reason"],
        )
        self._dropped = Counter(
            "sglang:layered_dropped_cohorts_total",
            "Cohorts that left before their last layer group, by reason.",
            [*names, "reason"],
        )
        self._active.labels(**labels).set(1)

    def dropped(self, reason: str) -> None:
        """A cohort left before its last group."""
        self._dropped.labels(**self._labels, reason=reason).inc()

    def mode_changed(self, mode: str, reason: str) -> None:
        """The server goes on in another mode."""
        self._active.labels(**self._labels).set(mode == "layered")
        self._changes.labels(**self._labels, mode=mode, reason=reason).inc()


def metrics_of(scheduler: Any) -> ModeMetrics:
    """What this scheduler process records."""
    reporter = scheduler.metrics_reporter
    if not getattr(reporter, "current_scheduler_metrics_enabled", False):
        return NoMetrics()
    return PrometheusMetrics(dict(scheduler.metrics_collector.labels))
