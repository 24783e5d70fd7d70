"""The capacity: the rate at which attainment is still 90 %, from a sweep over rates. Pure.

Attainment need not fall with the rate: it is measured, and noisy. The bracket is made at the *lowest* rate
that missed the target.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult

RATE = "load.rate_per_s"
TARGET = 0.9


@dataclass(frozen=True, slots=True)
class Observation:
    """One rate in requests a second, and the share of its requests that met the limits."""

    rate_rps: float
    attainment: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """`high` is the lowest rate that missed the target, `low` the highest below it; None where none is."""

    low: Observation | None
    high: Observation | None

    @property
    def rate_rps(self) -> float | None:
        """A rate that was run and met the target; None when none did."""
        return None if self.low is None else self.low.rate_rps

    @property
    def crossing_rps(self) -> float | None:
        """Where the line through both ends crosses the target, an interpolation; None with one end."""
        if self.low is None or self.high is None:
            return None
        part = (self.low.attainment - TARGET) / (self.low.attainment - self.high.attainment)
        return self.low.rate_rps + part * (self.high.rate_rps - self.low.rate_rps)

    def __str__(self) -> str:
        """In words: where attainment crosses the target, or beyond which end of the rates."""
        if self.low is None or self.high is None:
            return f"below {self.high.rate_rps:g}" if self.high else f"above {self.rate_rps:g}"
        return f"{self.crossing_rps:.2f}"


def conclude(observations: Iterable[Observation]) -> Capacity:
    """Bracket the lowest rate at which attainment falls below the target, from one observation or more."""
    by_rate = sorted(observations, key=lambda each: each.rate_rps)
    high = next((each for each in by_rate if each.attainment < TARGET), None)
    below = [each for each in by_rate if high is None or each.rate_rps < high.rate_rps]
    return Capacity(below[-1] if below else None, high)


def capacity_of(sweep: SweepResult, arm: str) -> Capacity | None:
    """What the rates of one arm tell; None where attainment was not measured."""
    seen = list(_observations(sweep.of_arm(arm)))
    return conclude(seen) if seen else None


def capacity_text(found: Capacity | None) -> str:
    """In words: where attainment crosses 90 %, or beyond which end of the rates."""
    return "not measured" if found is None else str(found)


def rows(sweeps: Mapping[str, SweepResult]) -> Iterator[tuple[str, ...]]:
    """For every sweep over rates: its title, then each arm's capacity in requests/s."""
    for sweep in sweeps.values():
        if RATE in sweep.grid and len(sweep.grid[RATE]) > 1:
            found = [f"{arm}: {capacity_text(capacity_of(sweep, arm))}" for arm in sweep.arms]
            yield (sweep.title, ", ".join(found))


def joules_at_top_rate(sweep: SweepResult, arm: str) -> float | None:
    """J a token at the highest rate that the arm attains 90 % at; None where it has none, or no joules."""
    found = capacity_of(sweep, arm)
    if found is None or found.rate_rps is None:
        return None
    cells = [cell for cell in sweep.of_arm(arm) if cell.point[RATE] == found.rate_rps]
    return cells[0].mean("joules_total") if cells else None


def _observations(cells: list[CellResult]) -> Iterator[Observation]:
    for cell in cells:
        share = cell.mean("attainment")
        if share is not None:
            yield Observation(float(cell.point[RATE]), share)
