"""Scrapes as data: the series of one, and what happened between two. It knows no clock.

A counter that fell was set to 0 by a restart, so its whole value is new, as in PromQL's `increase`: never
less than nothing, and at most what happened. Unlike there, a series that appears counts from 0 if its server
was known before, and nothing is extrapolated to the edges of the window.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from sglang_layered.metrics.table import PREFIX

# SGLang's router writes "_" for the ":" of its workers' names.
PREFIXES = (PREFIX, PREFIX.replace(":", "_"))
# Labels that tell servers behind one page apart: SGLang's router, a Prometheus federation.
SOURCE_LABELS = ("worker_addr", "instance")
NONE = -1  # the number of a rank that a series does not name

Labels = frozenset[tuple[str, str]]
Series = Mapping[Labels, float]


class Rank(NamedTuple):
    """One pipeline stage of one replica: its server ("" without a router), data-parallel rank and stage."""

    server: str
    dp_rank: int = NONE
    stage: int = NONE


def server_of(labels: Labels) -> str:
    """Address of the server that a series came from, "" where the page is one server's own."""
    return next((value for name, value in sorted(labels) if name in SOURCE_LABELS), "")


def rank_of(labels: Labels) -> Rank:
    """The rank that wrote a series."""
    return Rank(server_of(labels), _number(labels, "dp_rank"), _number(labels, "pp_rank"))


def replica_of(labels: Labels) -> Rank:
    """The replica that wrote a series, whatever its stage."""
    return rank_of(labels)._replace(stage=NONE)


def _number(labels: Labels, name: str) -> int:
    value = dict(labels).get(name, "")
    return int(value) if value.isdecimal() else NONE


@dataclass(frozen=True, slots=True)
class Sample:
    """All values of one scrape that are numbers, by name without prefix.

    `time_s` is on the reader's monotonic clock; `cumulative` names the series that only a restart makes fall.
    """

    time_s: float
    series: Mapping[str, Series]
    cumulative: frozenset[str] = frozenset()

    def of(self, name: str, **labels: str) -> dict[Labels, float]:
        """Series of one metric that have all of `labels`; empty where the server has none."""
        wanted = set(labels.items())
        return {key: value for key, value in self.series.get(name, {}).items() if wanted <= key}

    def servers(self) -> set[str]:
        """Every server that wrote something."""
        return {server_of(key) for series in self.series.values() for key in series}

    def ranks(self) -> list[Rank]:
        """Every scheduler rank, replicas in order and their stages in order."""
        found = {rank_of(key) for series in self.series.values() for key in series}
        return sorted(rank for rank in found if rank.stage != NONE)


def parse(text: str, time_s: float) -> Sample:
    """Read the text format of Prometheus.

    Of several tensor ranks of one stage only the lowest is kept: they repeat each other's counts.

    Raises:
        ValueError: `text` is in another format.
    """
    series: dict[str, dict[Labels, float]] = {}
    cumulative: set[str] = set()
    lowest: dict[Rank, int] = {}
    for family in text_string_to_metric_families(text):
        for point in family.samples:
            prefix = next((prefix for prefix in PREFIXES if point.name.startswith(prefix)), None)
            if prefix is None or math.isnan(point.value):
                continue
            name, key = point.name.removeprefix(prefix), frozenset(point.labels.items())
            series.setdefault(name, {})[key] = point.value
            if family.type in ("counter", "histogram"):
                cumulative.add(name)
            if "tp_rank" in point.labels:
                tensor, rank = _number(key, "tp_rank"), rank_of(key)
                lowest[rank] = min(tensor, lowest.get(rank, tensor))
    kept = {
        name: {
            key: value
            for key, value in points.items()
            if _number(key, "tp_rank") in (NONE, lowest.get(rank_of(key)))
        }
        for name, points in series.items()
    }
    return Sample(time_s, kept, frozenset(cumulative))


def increases(old: Sample, new: Sample, name: str) -> dict[Labels, float]:
    """Increase of each series of a counter."""
    before, known = old.of(name), old.servers()
    return {
        key: value - before.get(key, 0.0) if value >= before.get(key, 0.0) else value
        for key, value in new.of(name).items()
        if key in before or server_of(key) in known
    }


def fell(old: Sample, new: Sample) -> bool:
    """Whether any counter fell: a server was started again between the two."""
    return any(
        value < old.series.get(name, {}).get(key, 0.0)
        for name in new.cumulative
        for key, value in new.series[name].items()
    )


def total(series: Series, **labels: str) -> float:
    """Sum over all series that have `labels`."""
    wanted = set(labels.items())
    return sum(value for key, value in series.items() if wanted <= key)


class Quantile(NamedTuple):
    """A quantile by linear interpolation in its bucket `(low, high]`.

    The true one lies in that bucket too. In the last bucket, whose `high` is infinite, `value` is `low`.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations by bucket: `counts[i]` of them in `(bounds[i - 1], bounds[i]]`; the last bound is inf."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @property
    def num_observations(self) -> float:
        """Observations in all buckets."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Exact mean of the observations, None without any."""
        return self.total / self.num_observations if self.num_observations else None

    def quantile(self, fraction: float) -> Quantile | None:
        """PromQL's `histogram_quantile`, None without observations."""
        rank, below, low = fraction * self.num_observations, 0.0, 0.0
        if not self.num_observations:
            return None
        for high, count in zip(self.bounds, self.counts, strict=True):
            if count and below + count >= rank:
                part = (rank - below) / count
                return Quantile(low if math.isinf(high) else low + (high - low) * part, low, high)
            below, low = below + count, high
        raise AssertionError("the last bucket holds the last observation")

    def since(self, before: "Histogram") -> "Histogram":
        """Observations that came after `before`; all of them if a bucket fell or the buckets are others."""
        counts = tuple(map(operator.sub, self.counts, before.counts))
        if self.bounds != before.bounds or self.total < before.total or any(count < 0 for count in counts):
            return self
        return replace(self, counts=counts, total=self.total - before.total)

    def up_to(self, bound: float) -> float:
        """Observations of at most `bound`, which is one of the bounds."""
        return sum(count for high, count in zip(self.bounds, self.counts, strict=True) if high <= bound)


def _histogram(bounds: Sequence[float], cumulative: Iterable[float], total: float) -> Histogram:
    counts = tuple(high - low for low, high in pairwise([0.0, *cumulative]))
    return Histogram(tuple(bounds), counts, total)


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All observations together, in the buckets that all have."""
    parts = list(histograms)
    bounds = sorted(set.intersection(*(set(part.bounds) for part in parts))) if parts else [math.inf]
    cumulative = [sum(part.up_to(bound) for part in parts) for bound in bounds]
    return _histogram(bounds, cumulative, sum(part.total for part in parts))


def histograms(sample: Sample, name: str) -> dict[Labels, Histogram]:
    """Histograms of one metric by labels, as they stand; one without an infinite bucket is left out."""
    ladders: dict[Labels, dict[float, float]] = {}
    for key, value in sample.of(f"{name}_bucket").items():
        bound = next((float(value) for label, value in key if label == "le"), math.nan)
        ladders.setdefault(frozenset(pair for pair in key if pair[0] != "le"), {})[bound] = value
    totals = sample.of(f"{name}_sum")
    return {
        key: _histogram(sorted(ladder), [ladder[bound] for bound in sorted(ladder)], totals.get(key, 0.0))
        for key, ladder in ladders.items()
        if math.inf in ladder
    }


def observed(old: Sample, new: Sample, name: str, *, rank: Rank | None = None, **labels: str) -> Histogram:
    """Observations of a metric between two samples, over all series of `rank` that have `labels`."""
    before, known = histograms(old, name), old.servers()
    return merged(
        now.since(before[key]) if key in before else now
        for key, now in histograms(new, name).items()
        if labels.items() <= set(key)
        and rank in (None, rank_of(key))
        and (key in before or server_of(key) in known)
    )
