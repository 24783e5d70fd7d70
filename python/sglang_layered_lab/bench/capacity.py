"""Which request rate to try next, to find the capacity: the rate at which attainment is still 90 %. Pure.

Attainment need not fall with the rate: it is measured, and noisy. The bracket is made at the *lowest* rate
that missed the target, and whatever contradicts a falling curve is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import combinations
from math import isfinite, sqrt
from typing import Literal

from sglang_layered.errors import BenchError

Status = Literal["found", "all rates missed", "all rates met", "runs used up"]


@dataclass(frozen=True, slots=True)
class Observation:
    """One run: its rate in requests a second and the share of requests that met the limits."""

    rate_rps: float
    attainment: float


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched, and when it ends.

    `first_rates_rps` all run, in this order. `factor` widens the range while one side is missing. The search
    ends when the bracket's ends are at most `tolerance` apart (0.05: the higher is 1.05 times the lower),
    when a rate beyond [min_rate_rps, max_rate_rps] would be next, or after `max_runs`.
    """

    first_rates_rps: tuple[float, ...]
    target: float = 0.9
    tolerance: float = 0.05
    factor: float = 2.0
    min_rate_rps: float = 0.01
    max_rate_rps: float = 1000.0
    max_runs: int = 16

    def __post_init__(self) -> None:
        rates = self.first_rates_rps
        if not rates or len(set(rates)) != len(rates):
            raise BenchError("first_rates_rps must name at least one rate, and none twice")
        if not all(self.min_rate_rps <= rate <= self.max_rate_rps for rate in rates):
            raise BenchError(f"first_rates_rps must lie in [{self.min_rate_rps}, {self.max_rate_rps}]")
        if self.min_rate_rps <= 0 or not isfinite(self.max_rate_rps):
            raise BenchError("min_rate_rps must be above 0 and max_rate_rps finite")
        if not 0 < self.target <= 1:
            raise BenchError(f"target is {self.target}; give a share above 0 and at most 1")
        if self.tolerance <= 0 or self.factor <= 1:
            raise BenchError("tolerance must be above 0 and factor above 1")
        if self.max_runs < len(rates):
            raise BenchError(
                f"max_runs is {self.max_runs}; give at least the {len(rates)} of first_rates_rps"
            )


@dataclass(frozen=True, slots=True)
class Bracket:
    """`high` is the lowest rate that missed the target, `low` the highest below it; None where none is."""

    low: Observation | None
    high: Observation | None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search found.

    `rate_rps` is the bracket's lower end, a rate that was run and met the target; None when none did.
    `crossing_rps` is the line through the bracket's ends at the target, an interpolation.
    `rises` are the pairs, lower rate first, in which the higher rate attained more; `contradictions` are
    those of them in which the lower rate missed the target and the higher met it.
    """

    status: Status
    rate_rps: float | None
    crossing_rps: float | None
    bracket: Bracket
    observations: tuple[Observation, ...]
    rises: tuple[tuple[Observation, Observation], ...]
    contradictions: tuple[tuple[Observation, Observation], ...]


def bracket_of(observations: tuple[Observation, ...], target: float) -> Bracket:
    """Bracket the lowest rate at which attainment falls below the target."""
    by_rate = sorted(observations, key=lambda each: each.rate_rps)
    high = next((each for each in by_rate if each.attainment < target), None)
    below = [each for each in by_rate if high is None or each.rate_rps < high.rate_rps]
    return Bracket(below[-1] if below else None, high)


def next_rate(search: Search, observations: tuple[Observation, ...]) -> float | None:
    """Rate to run next, in requests a second; None at the end of the search."""
    if len(observations) < len(search.first_rates_rps):
        return search.first_rates_rps[len(observations)]
    if len(observations) >= search.max_runs:
        return None
    bracket = bracket_of(observations, search.target)
    if bracket.high is None:
        highest = max(each.rate_rps for each in observations)
        return _unless_at(highest, min(highest * search.factor, search.max_rate_rps))
    if bracket.low is None:
        return _unless_at(
            bracket.high.rate_rps, max(bracket.high.rate_rps / search.factor, search.min_rate_rps)
        )
    low_rps, high_rps = bracket.low.rate_rps, bracket.high.rate_rps
    return None if high_rps <= low_rps * (1 + search.tolerance) else sqrt(low_rps * high_rps)


def _unless_at(edge_rps: float, next_rps: float) -> float | None:
    return None if next_rps == edge_rps else next_rps


def drive(search: Search) -> Generator[float, float, Capacity]:
    """Yield the rate to run, take its attainment by `send`; the generator's value is what was found.

    It depends on the attainments alone: a search goes on after a stop when it is sent the old ones again.

    Raises:
        BenchError: an attainment is no share.
    """
    observations: tuple[Observation, ...] = ()
    while (rate_rps := next_rate(search, observations)) is not None:
        attainment = yield rate_rps
        if not 0 <= attainment <= 1:
            raise BenchError(f"attainment is {attainment} at {rate_rps} requests/s; give a share from 0 to 1")
        observations += (Observation(rate_rps, attainment),)
    return conclude(search, observations)


def find_capacity(search: Search, run: Callable[[float], float]) -> Capacity:
    """Search with a callback that runs one rate and returns its attainment."""
    driver = drive(search)
    rate_rps = next(driver)
    while True:
        try:
            rate_rps = driver.send(run(rate_rps))
        except StopIteration as end:
            found: Capacity = end.value
            return found


def conclude(search: Search, observations: tuple[Observation, ...]) -> Capacity:
    """Say what the observations tell, whether the search has ended or not."""
    bracket = bracket_of(observations, search.target)
    by_rate = sorted(observations, key=lambda each: each.rate_rps)
    rises = tuple((low, high) for low, high in combinations(by_rate, 2) if high.attainment > low.attainment)
    return Capacity(
        status=_status(search, bracket),
        rate_rps=bracket.low.rate_rps if bracket.low else None,
        crossing_rps=_crossing_rps(bracket, search.target),
        bracket=bracket,
        observations=observations,
        rises=rises,
        contradictions=tuple(
            (low, high) for low, high in rises if low.attainment < search.target <= high.attainment
        ),
    )


def _status(search: Search, bracket: Bracket) -> Status:
    if bracket.high is None:
        return "all rates met"
    if bracket.low is None:
        return "all rates missed"
    is_narrow = bracket.high.rate_rps <= bracket.low.rate_rps * (1 + search.tolerance)
    return "found" if is_narrow else "runs used up"


def _crossing_rps(bracket: Bracket, target: float) -> float | None:
    low, high = bracket.low, bracket.high
    if low is None or high is None:
        return None
    part = (low.attainment - target) / (low.attainment - high.attainment)
    return low.rate_rps + part * (high.rate_rps - low.rate_rps)
