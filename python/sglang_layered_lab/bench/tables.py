"""A sweep's figures as tables of text: for documents and for the report. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_layered_lab.bench.figure_data import gap_scalars, titles_of
from sglang_layered_lab.bench.intervals import Interval
from sglang_layered_lab.bench.scalars import SCALARS, Unit
from sglang_layered_lab.bench.sweep_compare import (
    RIVAL_MODE,
    ArmDuel,
    ArmValue,
    Versus,
    point_duels,
    point_values,
)
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult

ABSENT = "-"
COVERAGES = ("coverage_prompt", "coverage_hybrid", "coverage_decode")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a header; `notes` are what a reader has to know beside it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table in Markdown, its notes behind it."""
        return "\n\n".join([to_markdown(self.header, self.rows), *self.notes])


@dataclass(frozen=True, slots=True)
class Scale:
    """What a scalar's values are multiplied by to be shown in `unit`."""

    unit: str
    factor: float

    @classmethod
    def of(cls, unit: Unit, values: Iterable[float]) -> Scale:
        """A scale on which the greatest of the values reads well."""
        most = max(values, default=0.0)
        if unit in ("s", "J"):
            return cls(f"m{unit}", 1e3) if most < 1 else cls(unit, 1.0)
        if unit == "bytes":
            return cls("MB", 1e-6) if most < 1e8 else cls("GB", 1e-9)
        return cls("%", 100.0) if unit == "share" else cls(unit, 1.0)

    def number(self, value: float) -> str:
        """A value with three digits, more only before the point."""
        scaled = self.factor * value
        return f"{scaled:.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"

    def shown(self, value: float, interval: Interval | None) -> str:
        """A value and the ends of its interval."""
        if interval is None:
            return self.number(value)
        return f"{self.number(value)} [{self.number(interval.low)}, {self.number(interval.high)}]"


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars and line ends in cells are made harmless."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(each) for each in line)} |" for line in lines)


def scale_of(name: str, values: Sequence[ArmValue]) -> Scale:
    """The scale of a scalar's column."""
    return Scale.of(SCALARS[name].unit, [each.mean for each in values if each.mean is not None])


def heading(name: str, scale: Scale) -> str:
    """A scalar's title and the unit of its column."""
    return f"{SCALARS[name].title}, {scale.unit}" if scale.unit else SCALARS[name].title


def point_text(point: Mapping[str, Any]) -> str:
    """A point of the grid in words; "all" where there is no grid."""
    return ", ".join(f"{key.rpartition('.')[2]} = {_plain(value)}" for key, value in point.items()) or "all"


def versus_text(versus: Versus | None) -> str:
    """The ratio to the baseline with interval, verdict and precision; empty for the baseline itself."""
    if versus is None:
        return ""
    dropped = f"; {versus.num_dropped} round(s) dropped" if versus.num_dropped else ""
    if versus.comparison is not None:
        ratio = versus.comparison.ratio
        width = "" if versus.comparison.is_precise else ", not precise"
        ends = f"[{_ratio(ratio.low)}, {_ratio(ratio.high)}]"
        return f"x{_ratio(ratio.value)} {ends} {versus.verdict}{width}{dropped}"
    if versus.ratio is not None:
        return f"x{_ratio(versus.ratio)}, one round: no interval{dropped}"
    if not versus.num_pairs:
        return f"no round in common{dropped}"
    return f"no ratio: a value is 0; {'behind' if versus.is_behind else 'not behind'}{dropped}"


def coverage_text(cell: CellResult) -> str:
    """Measured expert coverage in % by phase: prompt, hybrid, decode."""
    means = [cell.mean(name) for name in COVERAGES]
    if all(mean is None for mean in means):
        return "not measured"
    return " / ".join(ABSENT if mean is None else Scale("%", 100).number(mean) for mean in means)


def failures_text(cell: CellResult) -> str:
    """Requests of all rounds that failed, and those that were due."""
    due = [
        trace
        for repetition in cell.record.repetitions
        for trace in repetition.traces
        if repetition.window.holds(trace.due_s)
    ]
    return f"{sum(trace.error is not None for trace in due)} of {len(due)}"


def scalar_table(
    result: SweepResult, point: Mapping[str, Any], baseline: str, names: Sequence[str] = tuple(SCALARS)
) -> Table:
    """Every arm's scalars at a point: mean and interval over rounds, failures and coverage beside them."""
    return _arm_table(result, point, baseline, names, with_ratios=False)


def ratio_table(
    result: SweepResult, point: Mapping[str, Any], baseline: str, names: Sequence[str] = tuple(SCALARS)
) -> Table:
    """Every arm's scalars over the baseline's at a point, with verdicts; coverage beside them."""
    return _arm_table(result, point, baseline, names, with_ratios=True)


def duel_table(
    result: SweepResult, point: Mapping[str, Any], tbt: str | None = None, rival_mode: str = RIVAL_MODE
) -> Table:
    """Every arm of another mode against the best rival at equal or better TBT; lost duels say so."""
    cells = result.at(point)
    tbt = tbt or next(iter(gap_scalars(cells)))
    found = point_duels(result, point, tbt, rival_mode)
    header = (
        "arm",
        "TTFT, s",
        f"{SCALARS[tbt].title}, ms",
        f"best {rival_mode} arm at equal or better TBT",
        "its TTFT, s",
        "its TBT, ms",
        "TTFT ratio",
        "outcome",
    )
    if not found:
        return Table(header, (), (f"No duels: no arm of mode {rival_mode} here, or no other.",))
    titles = titles_of(cells)
    note = "TTFT and TBT are means over rounds; the rival is chosen by them."
    return Table(header, tuple(_duel_row(each, titles) for each in found), (note, *round_notes(cells)))


def outcome(duel: ArmDuel) -> str:
    """How the rival did."""
    if duel.duel.rival is None:
        return "loses: no rival has such a TBT"
    words = "loses" if duel.is_lost else "wins"
    verdict = None if duel.versus is None else duel.versus.verdict
    return f"{words}, undecided" if verdict == "undecided" else words


def _duel_row(each: ArmDuel, titles: Mapping[str, str]) -> tuple[str, ...]:
    place, rival = each.duel.baseline, each.duel.rival
    ours = (titles[place.arm], f"{place.ttft_s:.3f}", f"{1e3 * place.tbt_s:.1f}")
    if rival is None:
        return (*ours, "none", ABSENT, ABSENT, ABSENT, outcome(each))
    theirs = (titles[rival.arm], f"{rival.ttft_s:.3f}", f"{1e3 * rival.tbt_s:.1f}")
    return (*ours, *theirs, versus_text(each.versus), outcome(each))


def _arm_table(
    result: SweepResult, point: Mapping[str, Any], baseline: str, names: Sequence[str], *, with_ratios: bool
) -> Table:
    cells = result.at(point)
    titles = titles_of(cells)
    found = point_values(result, point, baseline, names)
    if with_ratios:
        found = {name: values for name, values in found.items() if SCALARS[name].better is not None}
    scales = {name: scale_of(name, values) for name, values in found.items()}
    columns = [
        [versus_text(each.versus) if with_ratios else _mean(each, scales[name]) for each in values]
        for name, values in found.items()
    ]
    rows = tuple(
        (titles[cell.arm], *values, failures_text(cell), coverage_text(cell))
        for cell, *values in zip(cells, *columns, strict=True)
    )
    shown = [SCALARS[name].title if with_ratios else heading(name, scales[name]) for name in found]
    header = ("arm", *shown, "failed of due", "expert coverage %: prompt / hybrid / decode")
    absent = [SCALARS[name].title for name in names if name not in found and SCALARS[name].better]
    notes = [f"Not measured here: {'; '.join(absent)}."] if absent else []
    if with_ratios and baseline in titles:
        notes.append(f"Ratios are to {titles[baseline]}, paired by rounds.")
    return Table(header, rows, (*notes, *round_notes(cells)))


def round_notes(cells: Sequence[CellResult]) -> tuple[str, ...]:
    """What to know of the number of rounds."""
    counts = {len(cell.record.repetitions) for cell in cells}
    if counts == {1}:
        return ("One round: no interval.",)
    return (f"Arms have {min(counts)} to {max(counts)} rounds.",) if len(counts) > 1 else ()


def _mean(value: ArmValue, scale: Scale) -> str:
    return ABSENT if value.mean is None else scale.shown(value.mean, value.interval)


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.3g}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
