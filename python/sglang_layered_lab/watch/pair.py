"""What a page reads from two samples of one server: rates over the window between them, and the present.

Counts that every pipeline stage repeats (steps, requests, tokens, cohorts, KV slots) are those of each
replica's first stage; bytes are the sum over all ranks, and times are over all ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_layered_lab.watch.sample import (
    Histogram,
    Labels,
    Rank,
    Sample,
    Series,
    increases,
    observed,
    rank_of,
    replica_of,
    total,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two samples, of which all or one rank's series are read; `labels` are those that a series must have."""

    old: Sample
    new: Sample
    rank: Rank | None = None

    @property
    def window_s(self) -> float:
        """Time between the two samples."""
        return self.new.time_s - self.old.time_s

    def grown(self, metric: str) -> dict[Labels, float]:
        """Increase of each series in the window."""
        return increases(self.old, self.new, metric)

    def once(self, series: Series) -> dict[Labels, float]:
        """Those of the rank, or of each replica's first stage, without SGLang's gauges by priority."""
        first: dict[Rank, int] = {}
        for key in sorted(series, key=rank_of):
            first.setdefault(replica_of(key), rank_of(key).stage)
        return {
            key: value
            for key, value in series.items()
            if rank_of(key) == (self.rank or replica_of(key)._replace(stage=first[replica_of(key)]))
            and not dict(key).get("priority")
        }

    def now(self, metric: str, **labels: str) -> float | None:
        """Present value; None where there is none."""
        series = self.once(self.new.of(metric, **labels))
        return total(series) if series else None

    def rate(self, metric: str, **labels: str) -> float | None:
        """Increase per second; None where there is no such counter."""
        if not self.once(self.new.of(metric)):
            return None
        return total(self.once(self.grown(metric)), **labels) / self.window_s

    def seen(self, metric: str, **labels: str) -> Histogram:
        """Observations in the window, of all ranks or this one."""
        return observed(self.old, self.new, metric, rank=self.rank, **labels)

    def total_bytes(self, metric: str, **labels: str) -> float:
        """Present value, sum over all ranks."""
        return total(self.new.of(metric, **labels))

    def total_bytes_per_s(self, metric: str, **labels: str) -> float:
        """Increase per second, sum over all ranks."""
        return total(self.grown(metric), **labels) / self.window_s

    def by_reason(self, metric: str) -> dict[str, float]:
        """Counts since the server's start, by the label `reason`."""
        return summed(self.once(self.new.of(metric)), lambda key: dict(key).get("reason", "?"))

    def values(self, metric: str, **labels: str) -> list[float]:
        """The different present values."""
        return sorted(set(self.new.of(metric, **labels).values()))

    def met(self, metric: str, **labels: str) -> tuple[float, float]:
        """Of what finished in the window, what met its limit, and all."""
        return _met(self.grown(metric), labels)

    def met_ever(self, metric: str, **labels: str) -> tuple[float, float]:
        """The same since the server's start."""
        return _met(self.new.of(metric), labels)


def _met(series: Series, labels: dict[str, str]) -> tuple[float, float]:
    return total(series, met="true", **labels), total(series, **labels)


def summed(series: Series, group: Callable[[Labels], Any]) -> dict[Any, float]:
    """Sums by what `group` makes of a series' labels, in order."""
    sums: dict[Any, float] = {}
    for key, value in series.items():
        sums[group(key)] = sums.get(group(key), 0.0) + value
    return dict(sorted(sums.items()))
