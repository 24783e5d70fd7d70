"""The rate at which attainment is still 90 %, from a sweep over rates. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sglang_layered_lab.bench.capacity import Capacity, Observation, Search, conclude
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult

RATE = "load.rate_per_s"


def capacity_of(sweep: SweepResult, arm: str) -> Capacity | None:
    """What the rates of one arm tell; None where attainment was not measured."""
    seen = tuple(sorted(_observations(sweep.of_arm(arm)), key=lambda each: each.rate_rps))
    if not seen:
        return None
    rates = tuple(each.rate_rps for each in seen)
    return conclude(Search(rates, max_runs=max(len(rates), 16)), seen)


def capacity_text(found: Capacity | None) -> str:
    """In words: where attainment crosses 90 %, or beyond which end of the rates."""
    if found is None:
        return "not measured"
    rates = sorted(each.rate_rps for each in found.observations)
    if found.status == "all rates met":
        return f"above {rates[-1]:g}"
    if found.status == "all rates missed":
        return f"below {rates[0]:g}"
    return f"{found.crossing_rps:.2f}"


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
