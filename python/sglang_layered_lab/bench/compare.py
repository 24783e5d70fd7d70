"""Arms of a benchmark against each other: paired ratios with a verdict, and the best of many points. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.intervals import DEFAULT, Bootstrap, Interval, RatioOf, paired_ratio

Better = Literal["lower", "higher"]
Verdict = Literal["better", "worse", "undecided"]
WIDTH_LIMIT = 0.05


class HasTtft(Protocol):
    """Anything with a time to first token."""

    @property
    def ttft_s(self) -> float:
        """Seconds."""
        ...


Timed = TypeVar("Timed", bound=HasTtft)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One arm over the baseline in one metric.

    The verdict is `undecided` when the interval of the ratio contains 1. `is_precise` says that the interval
    reaches at most the width limit up and down from the ratio; where it does not, repeat more often.
    """

    arm: str
    baseline: str
    ratio: Interval
    verdict: Verdict
    is_precise: bool


@dataclass(frozen=True, slots=True)
class Point:
    """An arm's place in the plane of TTFT and TBT; less is better in both."""

    arm: str
    ttft_s: float
    tbt_s: float


@dataclass(frozen=True, slots=True)
class Duel:
    """A baseline's point and the rival with the lowest TTFT among those with an equal or better TBT.

    `rival` and `ttft_ratio` (the rival's over the baseline's) are None when no rival has such a TBT.
    """

    baseline: Point
    rival: Point | None
    ttft_ratio: float | None


def compare(
    runs: Mapping[str, Sequence[float]],
    baseline: str,
    *,
    better: Better = "lower",
    of: RatioOf = "geomean",
    width_limit: float = WIDTH_LIMIT,
    settings: Bootstrap = DEFAULT,
) -> list[Comparison]:
    """Compare every other arm with the baseline.

    Args:
        runs: a metric's values by arm, one a repetition. Values at one place were taken in one round, in
            which every arm had its turn, so that drift of the machine cancels.
        baseline: the arm that the others are divided by.
        better: which direction is better.
        of: what the ratio is of, as `paired_ratio` says.
        width_limit: how far a precise interval reaches, as a part of the ratio.
        settings: confidence, and how to resample.

    Raises:
        BenchError: the baseline is not in runs, there is no other arm, or the runs do not pair up.
    """
    if baseline not in runs or len(runs) < 2:
        raise BenchError(f"runs must hold the baseline {baseline!r} and another arm; it has {sorted(runs)}")
    if width_limit <= 0:
        raise BenchError(f"width_limit is {width_limit}; give a share above 0, such as {WIDTH_LIMIT}")
    found = []
    for arm, values in runs.items():
        if arm != baseline:
            ratio = paired_ratio(values, runs[baseline], of, settings)
            is_precise = max(ratio.high / ratio.value, ratio.value / ratio.low) <= 1 + width_limit
            found.append(Comparison(arm, baseline, ratio, verdict_of(ratio, better), is_precise))
    return found


def verdict_of(ratio: Interval, better: Better) -> Verdict:
    """Judge a ratio by its interval."""
    if ratio.low <= 1 <= ratio.high:
        return "undecided"
    return "better" if (ratio.high < 1) == (better == "lower") else "worse"


def pareto_set(points: Iterable[Point]) -> list[Point]:
    """Points that no other beats: as good in both and better in one. Lowest TTFT first; equals all stay."""
    found: list[Point] = []
    for point in sorted(points, key=lambda each: (each.ttft_s, each.tbt_s)):
        same = bool(found) and (found[-1].ttft_s, found[-1].tbt_s) == (point.ttft_s, point.tbt_s)
        if not found or same or point.tbt_s < found[-1].tbt_s:
            found.append(point)
    return found


def soonest(arms: Iterable[Timed], keeps: Callable[[Timed], bool]) -> Timed | None:
    """The lowest TTFT among those that keep a limit on TBT, the first of equals; None when none keeps it."""
    return min(filter(keeps, arms), key=lambda each: each.ttft_s, default=None)


def best_ttft(points: Iterable[Point], tbt_limit_s: float) -> Point | None:
    """The soonest of the points with at most this TBT (lower TBT on a tie); None when there is none."""
    by_tbt = sorted(points, key=lambda each: each.tbt_s)
    return soonest(by_tbt, lambda each: each.tbt_s <= tbt_limit_s)


def duels(baselines: Iterable[Point], rivals: Sequence[Point]) -> list[Duel]:
    """For every baseline, the best rival at equal or better TBT; also where the rival loses or has none."""
    found = []
    for baseline in baselines:
        rival = best_ttft(rivals, baseline.tbt_s)
        found.append(Duel(baseline, rival, None if rival is None else rival.ttft_s / baseline.ttft_s))
    return found
