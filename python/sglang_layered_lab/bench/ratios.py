"""Ratios between arms of a sweep, paired by rounds, with their verdicts. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from sglang_layered_lab.bench.intervals import Interval, paired_ratio
from sglang_layered_lab.bench.sweep_result import SweepResult

Better = Literal["lower", "higher"]
Verdict = Literal["better", "worse", "undecided"]
WIDTH_LIMIT = 0.05


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

    @property
    def is_precise(self) -> bool:
        """The interval reaches at most `WIDTH_LIMIT` of the ratio up and down; if not, repeat more often."""
        if self.interval is None:
            return False
        return max(self.interval.high / self.value, self.value / self.interval.low) <= 1 + WIDTH_LIMIT

    def as_change(self) -> str:
        """As a change in percent: `-56 % [-60, -51]`."""
        return f"{_percent(self.value)} %{self._ends(_percent)}"

    def as_times(self) -> str:
        """As a factor: `4.6 times [4.2, 5.1]`."""
        return f"{self.value:.3g} times{self._ends('{:.3g}'.format)}"

    def _ends(self, shown: Any) -> str:
        return "" if self.interval is None else f" [{shown(self.interval.low)}, {shown(self.interval.high)}]"


@dataclass(frozen=True, slots=True)
class Versus:
    """One scalar of an arm over the baseline's, in the rounds that both have.

    `ratio` is None where a value is 0 or no round is shared. `verdict` is better, worse, or undecided when
    the interval of the ratio contains 1; None without an interval. `is_behind` is what the means say.
    """

    num_pairs: int
    num_dropped: int
    ratio: Ratio | None
    verdict: Verdict | None
    is_behind: bool


def versus(ours: pd.Series, theirs: pd.Series, better: Better) -> Versus:
    """Compare an arm with the baseline.

    Args:
        ours: a scalar of the arm by the number of the round, NaN where a round has none. Arms had their turns
            in each round, so that drift of the machine cancels.
        theirs: the baseline's.
        better: which direction is better.
    """
    both = pd.concat([ours, theirs], axis=1, keys=["ours", "theirs"])
    pairs = both.dropna()
    sums = pairs.sum()
    is_behind = bool(sums.ours != sums.theirs and (sums.ours > sums.theirs) == (better == "lower"))
    if pairs.empty or (pairs <= 0).any(axis=None):
        return Versus(len(pairs), len(both) - len(pairs), None, None, is_behind)
    if len(pairs) == 1:
        single = Ratio(float(pairs.ours.iloc[0] / pairs.theirs.iloc[0]), None)
        return Versus(1, len(both) - 1, single, None, is_behind)
    interval = paired_ratio(pairs.ours.tolist(), pairs.theirs.tolist())
    ratio = Ratio(interval.value, interval)
    return Versus(len(pairs), len(both) - len(pairs), ratio, _verdict(ratio, better), is_behind)


def _verdict(ratio: Ratio, better: Better) -> Verdict:
    if not (ratio.is_below or ratio.is_above):
        return "undecided"
    return "better" if ratio.is_below == (better == "lower") else "worse"


def ratio(
    sweep: SweepResult, scalar: str, arm: str, baseline: str, point: Mapping[str, Any] | None = None
) -> Ratio | None:
    """Geometric mean of the rounds' ratios; None where the arms share no round with values above 0."""
    rounds = {cell.arm: cell.rounds[scalar] for cell in sweep.at(point or {})}
    if arm not in rounds or baseline not in rounds or arm == baseline:
        return None
    return versus(rounds[arm], rounds[baseline], "lower").ratio


def _percent(value: float) -> str:
    return f"{100 * (value - 1):+.0f}".replace("-", "\N{MINUS SIGN}")
