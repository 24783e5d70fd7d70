"""From raw arrival times to figures. Pure: every metric of the quickstart is defined here, once.

Times are seconds since the long prompt was sent, so tokens of the running streams that came earlier have
negative times. With t1 the arrival of the long prompt's first token and a stream's arrivals a_0 < a_1 < ...:

    TTFT        t1
    gaps        a_i - a_(i-1) of every running stream, where a_i > 0 and a_(i-1) <= t1: every pause that
                overlaps the time from sending the prompt to its first token, also if it ends after that
    worst gap   the longest of them
    median gap  their median, all running streams taken together
    tokens/s    tokens of all running streams that arrived in (0, T], divided by T, the end of the last gap
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from sglang_layered.errors import QuickstartError
from sglang_layered_lab.bench.trace import Arrival

Stream = tuple[Arrival, ...]


@dataclass(frozen=True, slots=True)
class Repetition:
    """Raw times of one arrival of the long prompt among the running streams."""

    long: Stream
    running: tuple[Stream, ...]

    def __post_init__(self) -> None:
        if not self.long or not self.running or not all(self.running):
            raise QuickstartError("a stream ended without a token")

    @property
    def ttft_s(self) -> float:
        """Time to the long prompt's first token."""
        return self.long[0].time_s

    def gaps(self) -> Iterator[tuple[float, float]]:
        """Start and end of every gap that counts (module docstring)."""
        for stream in self.running:
            for before, after in pairwise(stream):
                if after.time_s > 0 and before.time_s <= self.ttft_s:
                    yield before.time_s, after.time_s

    def worst_gap(self) -> tuple[float, float]:
        """Start and end of the longest gap that counts."""
        gaps = list(self.gaps())
        if not gaps:
            raise QuickstartError("no running stream had a token before and after the long prompt was sent")
        return max(gaps, key=lambda gap: gap[1] - gap[0])


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures of one repetition."""

    ttft_s: float
    worst_gap_s: float
    median_gap_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over the repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median, least and greatest of `values`."""
        return cls(median(values), min(values), max(values))


def tokens_until(stream: Stream, time_s: float) -> int:
    """How many tokens of a stream had arrived by `time_s`."""
    return max((arrival.num_tokens for arrival in stream if arrival.time_s <= time_s), default=0)


def measure(repetition: Repetition) -> Metrics:
    """Compute the figures of one repetition."""
    start_s, end_s = repetition.worst_gap()
    gaps = list(repetition.gaps())
    window_s = max(after_s for _, after_s in gaps)
    num_tokens = sum(
        tokens_until(stream, window_s) - tokens_until(stream, 0.0) for stream in repetition.running
    )
    return Metrics(
        ttft_s=repetition.ttft_s,
        worst_gap_s=end_s - start_s,
        median_gap_s=median(after_s - before_s for before_s, after_s in gaps),
        tokens_per_s=num_tokens / window_s,
    )


def summarise(repetitions: Sequence[Repetition]) -> dict[str, Spread]:
    """Each figure's spread over the repetitions, by the name it has in Metrics."""
    measured = [measure(repetition) for repetition in repetitions]
    return {name: Spread.of([getattr(each, name) for each in measured]) for name in Metrics.__slots__}


def typical(repetitions: Sequence[Repetition]) -> Repetition:
    """Pick the repetition with the median TTFT (the lower one of two), to draw."""
    return sorted(repetitions, key=lambda repetition: repetition.ttft_s)[(len(repetitions) - 1) // 2]
