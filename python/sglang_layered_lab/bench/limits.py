"""Arms that name a limit on the time between tokens, against the best arms that happen to keep it. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.beside import gaps_beside
from sglang_layered_lab.bench.compare import soonest
from sglang_layered_lab.bench.ratios import Ratio, ratio
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult

SETTING, FLAG = "layered_tbt_ms", "--slo-tbt-ms"
DEFAULT_SHARE = 0.99
MOST = 1.05  # times the TTFT of a rival


@dataclass(frozen=True, slots=True)
class Kept:
    """An arm at a point: its mean TTFT, and the part of the gaps beside prompts that a limit holds."""

    arm: str
    ttft_s: float
    share: float


@dataclass(frozen=True, slots=True)
class Rival:
    """The arm of a mode with the lowest TTFT among those that keep the limit, and the TTFT over its."""

    mode: str
    kept: Kept
    over: Ratio | None

    @property
    def verdict(self) -> str:
        """Whether the TTFT is at most `MOST` times the rival's, by the ends of the interval."""
        if self.over is None or self.over.interval is None:
            return "one round"
        low, high = self.over.interval.low, self.over.interval.high
        return "yes" if high <= MOST else "no" if low > MOST else "undecided"


@dataclass(frozen=True, slots=True)
class LimitRow:
    """One arm with a limit at one point, and a rival a mode; modes of which no arm keeps it have none."""

    point: Mapping[str, Any]
    limit_s: float
    own: Kept
    rivals: tuple[Rival, ...]


def limit_rows(sweep: SweepResult, share: float = DEFAULT_SHARE) -> list[LimitRow]:
    """All arms that name a limit at all points.

    Args:
        sweep: prompts beside streams, or any load with gaps.
        share: part of the gaps that an arm must hold to keep a limit.

    Raises:
        BenchError: no arm names a limit.
    """
    rows = [row for point in sweep.points for row in _rows(sweep, point, share)]
    if not rows:
        raise BenchError(f"{sweep.name}: no arm has a limit; set {SETTING} in server.settings, or {FLAG}")
    return rows


def _rows(sweep: SweepResult, point: Mapping[str, Any], share: float) -> Iterator[LimitRow]:
    cells = sweep.at(point)
    for cell in cells:
        limit_s = limit_of(cell)
        if limit_s is None or (own := kept_of(cell, limit_s)) is None:
            continue
        rivals = []
        for mode in dict.fromkeys(other.mode for other in cells if other.mode != cell.mode):
            kept = [found for other in cells if other.mode == mode and (found := kept_of(other, limit_s))]
            if best := soonest(kept, lambda each: each.share >= share):
                over = ratio(sweep, "ttft_mean", cell.arm, best.arm, point)
                rivals.append(Rival(mode, best, over))
        yield LimitRow(point, limit_s, own, tuple(rivals))


def limit_of(cell: CellResult) -> float | None:
    """The limit that the arm's server keeps, in seconds; None where it keeps none."""
    server = cell.record.spec["server"]
    words = list(server.get("flags", ()))
    flagged = float(words[words.index(FLAG) + 1]) if FLAG in words else 0.0
    limit_ms = float(server.get("settings", {}).get(SETTING, flagged))
    return limit_ms / 1e3 if limit_ms else None


def kept_of(cell: CellResult, limit_s: float) -> Kept | None:
    """How an arm does under a limit; None without a TTFT or gaps."""
    ttft_s, rounds = cell.mean("ttft_mean"), cell.record.repetitions
    gaps_s = np.concatenate([np.zeros(0), *(gaps_beside(each.traces, each.background) for each in rounds)])
    if not len(gaps_s):
        times_s = [[each.time_s for each in trace.arrivals] for run in rounds for trace in run.traces]
        gaps_s = np.concatenate([np.zeros(0), *map(np.diff, times_s)])
    if ttft_s is None or not len(gaps_s):
        return None
    return Kept(cell.arm, ttft_s, float(np.mean(gaps_s <= limit_s)))
