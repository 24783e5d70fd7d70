"""What the pictures of a sweep show, computed from its records. Pure: it draws nothing.

The dicts are those that `plots` takes. Values of several rounds are means over rounds, attainment is of the
requests of all rounds together. `figure_data_streams` has the tokens over time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from sglang_layered_lab.bench.compare import Point, pareto_set
from sglang_layered_lab.bench.intervals import Interval, share_interval
from sglang_layered_lab.bench.metrics import verdicts
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult

if TYPE_CHECKING:
    from sglang_layered_lab.bench.plots import (
        AttainmentCurve,
        Energy,
        ExpertBytes,
        ParetoPoint,
        TtftCurve,
    )

RATE = "load.rate_per_s"
PHASES = ("prompt", "hybrid", "decode")
JOULES = {"prompt token": "joules_prompt", "output token": "joules_output", "token": "joules_total"}
BESIDE = {
    "beside_worst": "worst gap of running streams beside a prompt",
    "beside_p99": "p99 of gaps of running streams beside a prompt",
}
ALL_GAPS = {"tbt_worst": "worst gap between tokens", "tbt_p99": "p99 of all gaps between tokens"}


@dataclass(frozen=True, slots=True)
class ParetoData:
    """Points of a picture; `gaps` names by scalar what their two TBT are; `left_out` are arms without one."""

    points: tuple[ParetoPoint, ...]
    gaps: Mapping[str, str]
    left_out: tuple[str, ...]


def titles_of(cells: Sequence[CellResult]) -> dict[str, str]:
    """What to call each arm where its mode is not shown; its name is added where two are called alike."""
    shown = {
        cell.arm: cell.label if cell.mode in cell.label else f"{cell.mode} {cell.label}" for cell in cells
    }
    alike = [title for title in shown.values() if list(shown.values()).count(title) > 1]
    return {arm: f"{title} ({arm})" if title in alike else title for arm, title in shown.items()}


def gap_scalars(cells: Sequence[CellResult]) -> Mapping[str, str]:
    """Scalars that a prefill's harm to others is seen in, worst and p99, with names in words.

    With streams in the background it is theirs, beside prompts; else it is that of all gaps.
    """
    return BESIDE if any(cell.known("beside_worst") for cell in cells) else ALL_GAPS


def pareto_points(result: SweepResult, point: Mapping[str, Any]) -> ParetoData:
    """Every arm at a point: TTFT, worst and p99 TBT, and whether another arm beats it in either plane."""
    cells = result.at(point)
    gaps = gap_scalars(cells)
    seen = {cell.arm: [cell.mean(name) for name in ("ttft_mean", *gaps)] for cell in cells}
    known = {
        arm: [value for value in values if value is not None]
        for arm, values in seen.items()
        if None not in values
    }
    fronts = [
        {
            each.arm
            for each in pareto_set(Point(arm, values[0], values[place]) for arm, values in known.items())
        }
        for place in (1, 2)
    ]
    points: list[ParetoPoint] = [
        {
            "mode": cell.mode,
            "label": cell.label,
            "ttft_s": known[cell.arm][0],
            "worst_tbt_s": known[cell.arm][1],
            "p99_tbt_s": known[cell.arm][2],
            "on_front": {"worst_tbt_s": cell.arm in fronts[0], "p99_tbt_s": cell.arm in fronts[1]},
        }
        for cell in cells
        if cell.arm in known
    ]
    return ParetoData(tuple(points), gaps, tuple(arm for arm in seen if arm not in known))


def rate_groups(result: SweepResult) -> list[dict[str, Any]]:
    """Points without their rate: one for each picture over rates. Empty where the grid has no two rates."""
    if len(result.grid.get(RATE, ())) < 2:
        return []
    others = {key: values for key, values in result.grid.items() if key != RATE}
    return [dict(zip(others, values, strict=True)) for values in product(*others.values())]


def counts_within(cell: CellResult, limit: str | None = None) -> tuple[int, int]:
    """Requests of all rounds that met a limit (ttft, tbt, both), and that were due; (0, 0) where it is unset.

    Without `limit`: that met every limit that is set.
    """
    limits = cell.record.limits
    judged = [
        verdicts(trace, limits)
        for repetition in cell.record.repetitions
        for trace in repetition.traces
        if repetition.window.holds(trace.due_s)
    ]
    if not judged or not judged[0] or (limit is not None and limit not in judged[0]):
        return 0, 0
    return sum(all(each.values()) if limit is None else each[limit] for each in judged), len(judged)


def attainment_curves(result: SweepResult, group: Mapping[str, Any]) -> list[AttainmentCurve]:
    """Share of requests within the limits over the rate, with Wilson's interval; the average decode batch.

    Cells without limits are left out.
    """
    curves: list[AttainmentCurve] = []
    titles = titles_of(result.cells)
    for cells in _by_arm(result, group):
        counts = {cell.point[RATE]: counts_within(cell) for cell in cells}
        shares = {rate: share_interval(*count) for rate, count in counts.items() if count[1]}
        if not shares:
            continue
        curve: AttainmentCurve = {
            "mode": cells[0].mode,
            "label": titles[cells[0].arm],
            "rates_rps": list(shares),
            "attainment": [share.value for share in shares.values()],
            "low": [share.low for share in shares.values()],
            "high": [share.high for share in shares.values()],
        }
        batches = [cell.mean("decode_batch") for cell in cells if cell.point[RATE] in shares]
        known = [batch for batch in batches if batch is not None]
        if len(known) == len(batches):
            curve["batch"] = known
        curves.append(curve)
    return curves


def ttft_curves(result: SweepResult, group: Mapping[str, Any]) -> list[TtftCurve]:
    """Mean TTFT over the rate, with its interval over rounds where every rate has two or more."""
    curves: list[TtftCurve] = []
    titles = titles_of(result.cells)
    for cells in _by_arm(result, group):
        means = {cell.point[RATE]: cell.mean("ttft_mean") for cell in cells}
        known = {rate: mean for rate, mean in means.items() if mean is not None}
        if not known:
            continue
        curve: TtftCurve = {
            "mode": cells[0].mode,
            "label": titles[cells[0].arm],
            "rates_rps": list(known),
            "ttft_s": list(known.values()),
        }
        intervals = [cell.interval("ttft_mean") for cell in cells if cell.point[RATE] in known]
        if ends := _ends(intervals):
            curve["low"], curve["high"] = ends
        curves.append(curve)
    return curves


def expert_bytes_bars(result: SweepResult, point: Mapping[str, Any]) -> list[ExpertBytes]:
    """Bytes of activated experts a request by phase, mean over rounds; only arms that were counted."""
    cells = result.at(point)
    titles = titles_of(cells)
    found: list[ExpertBytes] = []
    for cell in cells:
        total = cell.mean("expert_bytes")
        if total is None:
            continue
        prompt, hybrid, decode = (_mean_of_phase(cell, phase) for phase in PHASES)
        label = titles[cell.arm]
        found.append({"label": label, "prompt": prompt, "hybrid": hybrid, "decode": decode, "total": total})
    return found


def energy_bars(result: SweepResult, point: Mapping[str, Any]) -> list[Energy]:
    """Joules a token, mean over rounds, with intervals where all of an arm's have one; only measured arms."""
    cells = result.at(point)
    titles = titles_of(cells)
    found: list[Energy] = []
    for cell in cells:
        means = {kind: cell.mean(name) for kind, name in JOULES.items()}
        joules = {kind: mean for kind, mean in means.items() if mean is not None}
        if not joules:
            continue
        bar: Energy = {"mode": cell.mode, "label": titles[cell.arm], "joules": joules}
        if ends := _ends([cell.interval(JOULES[kind]) for kind in joules]):
            bar["low"], bar["high"] = (dict(zip(joules, each, strict=True)) for each in ends)
        found.append(bar)
    return found


def _mean_of_phase(cell: CellResult, phase: str) -> float:
    shares = [
        repetition.usage["expert_bytes"].get(phase, 0) / len(repetition.traces)
        for repetition in cell.record.repetitions
        if repetition.usage["expert_bytes"]
    ]
    return float(sum(shares)) / len(shares)


def _by_arm(result: SweepResult, group: Mapping[str, Any]) -> list[list[CellResult]]:
    """Cells of a group arm by arm, by rising rate."""
    cells = sorted(result.at(group), key=lambda cell: float(cell.point[RATE]))
    by_arm = [[cell for cell in cells if cell.arm == arm] for arm in result.arms]
    return [found for found in by_arm if found]


def _ends(intervals: Sequence[Interval | None]) -> tuple[list[float], list[float]] | None:
    known = [each for each in intervals if each is not None]
    if not known or len(known) < len(intervals):
        return None
    return [each.low for each in known], [each.high for each in known]
