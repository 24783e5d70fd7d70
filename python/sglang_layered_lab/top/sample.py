"""One scrape as data: which series there were, and which process wrote each. It knows no clock."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from sglang_layered.metrics.table import PREFIX

# SGLang's router writes "_" for the ":" of its workers' names.
PREFIXES = (PREFIX, PREFIX.replace(":", "_"))
# Labels that tell servers behind one page apart: SGLang's router, a Prometheus federation.
SOURCE_LABELS = ("worker_addr", "instance")

Labels = frozenset[tuple[str, str]]
Series = Mapping[Labels, float]


class Source(NamedTuple):
    """One replica: a server behind the page ("" without a router), and its data-parallel rank, if any."""

    server: str
    dp_rank: str


class Rank(NamedTuple):
    """One pipeline stage of one replica; `stage` is "" for a series that names no rank."""

    source: Source
    stage: str


def server_of(labels: Labels) -> str:
    """Address of the server that a series came from, "" where the page is one server's own."""
    return next((value for name, value in sorted(labels) if name in SOURCE_LABELS), "")


def rank_of(labels: Labels) -> Rank:
    """The rank that wrote a series."""
    named = dict(labels)
    return Rank(Source(server_of(labels), named.get("dp_rank", "")), named.get("pp_rank", ""))


def number(rank: str) -> int:
    """Sort ranks as numbers; a series without a rank comes first."""
    return int(rank) if rank.isdecimal() else -1


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
        return sorted(
            (rank for rank in found if rank.stage),
            key=lambda rank: (rank.source.server, number(rank.source.dp_rank), number(rank.stage)),
        )


def parse(text: str, time_s: float) -> Sample:
    """Read the text format of Prometheus.

    Of several tensor ranks of one stage only the lowest is kept: they repeat each other's counts.

    Raises:
        ValueError: `text` is in another format.
    """
    series: dict[str, dict[Labels, float]] = {}
    cumulative: set[str] = set()
    for kind, name, labels, value in _points(text):
        series.setdefault(name, {})[labels] = value
        if kind in ("counter", "histogram"):
            cumulative.add(name)
    return Sample(time_s, _lowest_tensor_ranks(series), frozenset(cumulative))


def _lowest_tensor_ranks(series: dict[str, dict[Labels, float]]) -> dict[str, Series]:
    lowest: dict[Rank, int] = {}
    for points in series.values():
        for key in points:
            tensor, rank = _tensor_rank(key), rank_of(key)
            if tensor is not None:
                lowest[rank] = min(tensor, lowest.get(rank, tensor))
    return {
        name: {
            key: value
            for key, value in points.items()
            if _tensor_rank(key) in (None, lowest.get(rank_of(key)))
        }
        for name, points in series.items()
    }


def _points(text: str) -> Iterator[tuple[str, str, Labels, float]]:
    for family in text_string_to_metric_families(text):
        for point in family.samples:
            prefix = next((prefix for prefix in PREFIXES if point.name.startswith(prefix)), None)
            if prefix is not None and not math.isnan(point.value):
                yield (
                    family.type,
                    point.name.removeprefix(prefix),
                    frozenset(point.labels.items()),
                    point.value,
                )


def _tensor_rank(labels: Labels) -> int | None:
    return next((number(value) for name, value in labels if name == "tp_rank"), None)
