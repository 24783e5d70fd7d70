"""The report's answers: what layered prefill gains over each baseline, and where it loses. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sglang_layered_lab.bench.compare import Point, best_ttft
from sglang_layered_lab.bench.figure_data import gap_scalars, titles_of
from sglang_layered_lab.bench.ratios import ratio
from sglang_layered_lab.bench.sweep_compare import RIVAL_MODE, point_duels
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult
from sglang_layered_lab.bench.tables import ABSENT, point_text
from sglang_layered_lab.paper.capacity import RATE

DUEL_HEADER = (
    "study",
    "point",
    "baseline",
    "layered arm with the lowest TTFT at equal or better worst TBT",
    "TTFT",
    "worst TBT",
    "expert bytes a request",
)
LIMIT_HEADER = (
    "study",
    "point",
    "worst TBT at most",
    "best other arm",
    "TTFT, s",
    "best layered arm",
    "TTFT, s",
    "",
)
NUM_LIMITS = 5


def duel_rows(sweeps: Sequence[SweepResult]) -> Iterator[tuple[str, ...]]:
    """Every baseline of every study that is no sweep over rates, at every point."""
    for sweep, point in _points(sweeps):
        titles, worst = titles_of(sweep.cells), next(iter(gap_scalars(sweep.at(point))))
        for each in point_duels(sweep, point, worst):
            baseline, rival = each.baseline.arm, each.rival
            start = (sweep.name, point_text(point), titles[baseline])
            if rival is None:
                yield (*start, "none has such a TBT: loses", ABSENT, ABSENT, ABSENT)
                continue
            found = [
                ratio(sweep, name, rival.arm, baseline, point)
                for name in ("ttft_mean", worst, "expert_bytes")
            ]
            yield (*start, titles[rival.arm], *(ABSENT if one is None else one.as_change() for one in found))


def limit_rows(sweeps: Sequence[SweepResult]) -> Iterator[tuple[str, ...]]:
    """For limits on the worst TBT from tight to loose: the best TTFT of other arms, and of layered ones.

    They reach from the least worst TBT of all arms, rounded up, to one that every arm keeps.
    """
    for sweep, point in _points(sweeps):
        titles = titles_of(sweep.cells)
        places = {cell.arm: place for cell in sweep.at(point) if (place := _place(cell, sweep.at(point)))}
        groups = [
            [places[cell.arm] for cell in sweep.at(point) if cell.mode in modes and cell.arm in places]
            for modes in ({cell.mode for cell in sweep.cells} - {RIVAL_MODE}, {RIVAL_MODE})
        ]
        tbts_s = [place.tbt_s for place in places.values()]
        for exact_s in np.geomspace(1.05 * min(tbts_s), 1.05 * max(tbts_s), NUM_LIMITS):
            limit_s = float(f"{exact_s:.2g}")
            best = [best_ttft(group, limit_s) for group in groups]
            shown = [text for each in best for text in _best_texts(each, titles)]
            yield (sweep.name, point_text(point), f"{1e3 * limit_s:.0f} ms", *shown, _outcome(*best))


def _points(sweeps: Sequence[SweepResult]) -> Iterator[tuple[SweepResult, Mapping[str, Any]]]:
    for sweep in sweeps:
        modes = {cell.mode for cell in sweep.cells}
        if RIVAL_MODE in modes and len(modes) > 1 and RATE not in sweep.grid:
            for point in sweep.points:
                yield sweep, point


def _place(cell: CellResult, cells: Sequence[CellResult]) -> Point | None:
    ttft_s, tbt_s = cell.mean("ttft_mean"), cell.mean(next(iter(gap_scalars(cells))))
    return None if ttft_s is None or tbt_s is None else Point(cell.arm, ttft_s, tbt_s)


def _best_texts(place: Point | None, titles: Mapping[str, str]) -> tuple[str, str]:
    return ("none", ABSENT) if place is None else (titles[place.arm], f"{place.ttft_s:.3f}")


def _outcome(other: Point | None, layered: Point | None) -> str:
    if other is None or layered is None:
        return "only layered keeps it" if other is None and layered else "layered does not keep it"
    words = "layered wins" if layered.ttft_s < other.ttft_s else "layered loses"
    return f"{words}: {layered.ttft_s / other.ttft_s:.2f} of its TTFT"
