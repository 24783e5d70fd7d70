"""Arms of a sweep against a baseline, point by point: means over rounds, paired ratios, duels. Pure; no text.

Ratios are of rounds in which both arms have a value; how many were dropped is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.compare import Point, best_ttft
from sglang_layered_lab.bench.figure_data import gap_scalars
from sglang_layered_lab.bench.intervals import Interval
from sglang_layered_lab.bench.ratios import Versus, versus
from sglang_layered_lab.bench.scalars import SCALARS
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult

RIVAL_MODE = "layered"


@dataclass(frozen=True, slots=True)
class ArmValue:
    """One scalar of one arm at one point: mean and interval over the rounds that have it."""

    arm: str
    mean: float | None
    interval: Interval | None
    num_rounds: int
    versus: Versus | None  # None of the baseline itself, and where the baseline has no record


@dataclass(frozen=True, slots=True)
class Duel:
    """A baseline's point and the rival with the lowest TTFT among those with an equal or better TBT.

    `versus` is of their TTFT, by rounds; it and `rival` are None when no rival has such a TBT.
    """

    baseline: Point
    rival: Point | None
    versus: Versus | None

    @property
    def is_lost(self) -> bool:
        """No rival has such a TBT, or the best one has a higher mean TTFT."""
        return self.rival is None or self.rival.ttft_s > self.baseline.ttft_s


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
    compared = next((cell for cell in cells if cell.arm == baseline), None)
    return {
        name: [_value(cell, name, compared) for cell in cells]
        for name in names
        if any(cell.known(name) for cell in cells)
    }


def _value(cell: CellResult, name: str, baseline: CellResult | None) -> ArmValue:
    found, better = None, SCALARS[name].better
    if baseline is not None and baseline is not cell and better is not None:
        found = versus(cell.rounds[name], baseline.rounds[name], better)
    return ArmValue(cell.arm, cell.mean(name), cell.interval(name), len(cell.known(name)), found)


def point_duels(
    result: SweepResult, point: Mapping[str, Any], tbt: str | None = None, rival_mode: str = RIVAL_MODE
) -> list[Duel]:
    """For every arm of another mode, the arm of the rivals' mode with the lowest TTFT at equal or better TBT.

    Args:
        result: the sweep.
        point: where in its grid.
        tbt: the scalar that TBT is; left out, the worst gap, that of the background where there is one.
        rival_mode: mode of the arms that take on the others.
    """
    cells = result.at(point)
    name = tbt or next(iter(gap_scalars(cells)))
    ttfts = {cell.arm: cell.rounds["ttft_mean"] for cell in cells}
    places = [(cell.mode, place) for cell in cells if (place := place_of(cell, name)) is not None]
    rivals = [place for mode, place in places if mode == rival_mode]
    duels = []
    for baseline in [place for mode, place in places if mode != rival_mode and rivals]:
        rival = best_ttft(rivals, baseline.tbt_s)
        found = None if rival is None else versus(ttfts[rival.arm], ttfts[baseline.arm], "lower")
        duels.append(Duel(baseline, rival, found))
    return duels


def place_of(cell: CellResult, tbt: str) -> Point | None:
    """An arm's mean TTFT, and the scalar that TBT is; None where it lacks one of them."""
    ttft_s, tbt_s = cell.mean("ttft_mean"), cell.mean(tbt)
    return None if ttft_s is None or tbt_s is None else Point(cell.arm, ttft_s, tbt_s)
