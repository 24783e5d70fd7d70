"""Ratios between arms of a sweep as the report writes them. Pure; `sweep_compare` pairs the rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_layered_lab.bench.intervals import Interval
from sglang_layered_lab.bench.sweep_compare import by_round, versus
from sglang_layered_lab.bench.sweep_result import SweepResult


@dataclass(frozen=True, slots=True)
class Ratio:
    """A scalar of one arm over that of another; no interval with a single round."""

    value: float
    interval: Interval | None

    @property
    def is_below(self) -> bool:
        """Certainly below 1 where there is an interval, below 1 where there is none."""
        return (self.interval.high if self.interval else self.value) < 1

    @property
    def is_above(self) -> bool:
        """Certainly above 1 where there is an interval, above 1 where there is none."""
        return (self.interval.low if self.interval else self.value) > 1

    def as_change(self) -> str:
        """As a change in percent: `-56 % [-60, -51]`."""
        return f"{_percent(self.value)} %{self._ends(_percent)}"

    def as_times(self) -> str:
        """As a factor: `4.6 times [4.2, 5.1]`."""
        return f"{self.value:.3g} times{self._ends('{:.3g}'.format)}"

    def _ends(self, shown: Any) -> str:
        return "" if self.interval is None else f" [{shown(self.interval.low)}, {shown(self.interval.high)}]"


def ratio(
    sweep: SweepResult, scalar: str, arm: str, baseline: str, point: Mapping[str, Any] | None = None
) -> Ratio | None:
    """Geometric mean of the rounds' ratios; None where the arms share no round with values above 0."""
    rounds = {cell.arm: by_round(cell, scalar) for cell in sweep.at(point or {})}
    if arm not in rounds:
        return None
    found = versus(rounds, arm, baseline, "lower")
    if found is None or found.ratio is None:
        return None
    return Ratio(found.ratio, found.comparison.ratio if found.comparison else None)


def _percent(value: float) -> str:
    return f"{100 * (value - 1):+.0f}".replace("-", "\N{MINUS SIGN}")
