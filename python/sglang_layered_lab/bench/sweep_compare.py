"""Arms of a sweep against a baseline, point by point: means over rounds, paired ratios, duels. Pure; no text.

Ratios are of rounds in which both arms have a value; how many were dropped is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.compare import Better, Comparison, Duel, Point, compare, duels
from sglang_layered_lab.bench.figure_data import counts_within, gap_scalars
from sglang_layered_lab.bench.intervals import Interval, share_interval
from sglang_layered_lab.bench.scalars import SCALARS
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult

RIVAL_MODE = "layered"
LIMIT_OF = {"attainment": "both", "attainment_ttft": "ttft", "attainment_tbt": "tbt"}


@dataclass(frozen=True, slots=True)
class Versus:
    """One scalar of an arm over the baseline's, in the rounds that both have.

    `ratio` is the comparison's, or the plain one of a single round; None where a value is 0 or no round is
    shared. `comparison` is None then and with fewer than two rounds. `is_behind` is what the means say.
    """

    baseline: str
    num_pairs: int
    num_dropped: int
    ratio: float | None
    comparison: Comparison | None
    is_behind: bool

    @property
    def verdict(self) -> str | None:
        """better, worse, undecided; None where nothing was compared."""
        return None if self.comparison is None else self.comparison.verdict


@dataclass(frozen=True, slots=True)
class ArmValue:
    """One scalar of one arm at one point: mean and interval over the rounds that have it.

    The interval of a share of requests is Wilson's, of the requests of all rounds together.
    """

    arm: str
    mean: float | None
    interval: Interval | None
    num_rounds: int
    versus: Versus | None  # None of the baseline itself, and where the baseline has no record


@dataclass(frozen=True, slots=True)
class ArmDuel:
    """A baseline's point and the best rival at equal or better TBT; `versus` is of their TTFT, by rounds."""

    duel: Duel
    versus: Versus | None

    @property
    def is_lost(self) -> bool:
        """No rival has such a TBT, or the best one has a higher mean TTFT."""
        return self.duel.ttft_ratio is None or self.duel.ttft_ratio > 1


def check_baseline(results: Sequence[SweepResult], baseline: str | None) -> None:
    """Refuse a name that no sweep has.

    Raises:
        BenchError: it names the arms there are.
    """
    arms = list(dict.fromkeys(arm for result in results for arm in result.arms))
    if baseline is not None and baseline not in arms:
        raise BenchError(f"--baseline {baseline}: no sweep has this arm; give one of {', '.join(arms)}")


def baseline_of(result: SweepResult, baseline: str | None = None) -> str:
    """The asked baseline where the sweep has it, else its first arm."""
    return baseline if baseline in result.arms and baseline is not None else result.arms[0]


def point_values(
    result: SweepResult, point: Mapping[str, Any], baseline: str, names: Sequence[str] = tuple(SCALARS)
) -> dict[str, list[ArmValue]]:
    """All arms' values at a point by scalar, in the arms' order; scalars that no arm has are left out."""
    cells = result.at(point)
    found: dict[str, list[ArmValue]] = {}
    for name in names:
        rounds = {cell.arm: by_round(cell, name) for cell in cells}
        if all(value is None for values in rounds.values() for value in values.values()):
            continue
        found[name] = [
            ArmValue(
                cell.arm,
                cell.mean(name),
                _interval(cell, name),
                sum(value is not None for value in rounds[cell.arm].values()),
                versus(rounds, cell.arm, baseline, SCALARS[name].better),
            )
            for cell in cells
        ]
    return found


def _interval(cell: CellResult, name: str) -> Interval | None:
    if name not in LIMIT_OF:
        return cell.interval(name)
    num_met, num_due = counts_within(cell, LIMIT_OF[name])
    return share_interval(num_met, num_due) if num_due else None


def by_round(cell: CellResult, name: str) -> dict[int, float | None]:
    """A scalar's values by the number of the round."""
    rounds = [repetition.index for repetition in cell.record.repetitions]
    return dict(zip(rounds, cell.values(name), strict=True))


def versus(
    rounds: Mapping[str, Mapping[int, float | None]], arm: str, baseline: str, better: Better | None
) -> Versus | None:
    """Compare an arm with the baseline by the values of their rounds."""
    if arm == baseline or baseline not in rounds or better is None:
        return None
    ours, theirs = rounds[arm], rounds[baseline]
    both = {index: (ours.get(index), theirs.get(index)) for index in sorted({*ours, *theirs})}
    pairs = [(one, other) for one, other in both.values() if one is not None and other is not None]
    num_dropped = len(both) - len(pairs)
    sums = [sum(values) for values in zip(*pairs, strict=True)] or [0.0, 0.0]
    is_behind = sums[0] != sums[1] and (sums[0] > sums[1]) == (better == "lower")
    if not pairs or any(value <= 0 for pair in pairs for value in pair):
        return Versus(baseline, len(pairs), num_dropped, None, None, is_behind)
    if len(pairs) == 1:
        return Versus(baseline, 1, num_dropped, pairs[0][0] / pairs[0][1], None, is_behind)
    runs = {arm: [one for one, _ in pairs], baseline: [other for _, other in pairs]}
    [comparison] = compare(runs, baseline, better=better)
    return Versus(baseline, len(pairs), num_dropped, comparison.ratio.value, comparison, is_behind)


def point_duels(
    result: SweepResult,
    point: Mapping[str, Any],
    tbt: str | None = None,
    rival_mode: str = RIVAL_MODE,
) -> list[ArmDuel]:
    """For every arm of another mode, the arm of the rivals' mode with the lowest TTFT at equal or better TBT.

    Args:
        result: the sweep.
        point: where in its grid.
        tbt: the scalar that TBT is; left out, the worst gap, that of the background where there is one.
        rival_mode: mode of the arms that take on the others.
    """
    cells = result.at(point)
    name = tbt or next(iter(gap_scalars(cells)))
    places = {cell.arm: _place(cell, name) for cell in cells}
    rivals = [place for cell in cells if cell.mode == rival_mode and (place := places[cell.arm])]
    baselines = [place for cell in cells if cell.mode != rival_mode and (place := places[cell.arm])]
    ttfts = {cell.arm: by_round(cell, "ttft_mean") for cell in cells}
    return [
        ArmDuel(
            duel,
            None if duel.rival is None else versus(ttfts, duel.rival.arm, duel.baseline.arm, "lower"),
        )
        for duel in (duels(baselines, rivals) if rivals else ())
    ]


def _place(cell: CellResult, tbt: str) -> Point | None:
    ttft_s, tbt_s = cell.mean("ttft_mean"), cell.mean(tbt)
    return None if ttft_s is None or tbt_s is None else Point(cell.arm, ttft_s, tbt_s)
