"""Tables of the HTML report: text with the kind of its outcome, so that what loses can be shown. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_layered_lab.bench.figure_data import gap_scalars, titles_of
from sglang_layered_lab.bench.scalars import SCALARS
from sglang_layered_lab.bench.sweep_compare import RIVAL_MODE, ArmValue, Versus, point_duels
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult
from sglang_layered_lab.bench.tables import (
    ABSENT,
    coverage_text,
    duel_table,
    failures_text,
    heading,
    outcome,
    point_text,
    scale_of,
    versus_text,
)

WRONG_IN = 20  # one of so many verdicts at 95 % is wrong by chance
GROUPS: Mapping[str, tuple[str, ...]] = {  # beginnings of scalars' names; OTHER_GROUP has the others
    "To the first token, and to the end": ("ttft", "e2e"),
    "Between tokens": ("tbt", "worst_gap", "beside", "tpot", "stall"),
    "Experts and energy": ("expert", "coverage", "joules"),
}
OTHER_GROUP = "Limits and throughput"
COVERAGE = "expert coverage %: prompt / hybrid / decode"
KINDS = {"better": "wins", "worse": "loses", "undecided": "undecided"}

Values = Mapping[str, Sequence[ArmValue]]  # by scalar


@dataclass(frozen=True, slots=True)
class ReportCell:
    """A table's cell: `detail` stands under the text, `kind` is wins, loses, behind, undecided or empty."""

    text: str
    detail: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table whose cells have kinds."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[ReportCell, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loss:
    """A comparison that an arm of the rivals' mode lost."""

    where: str
    arm: str
    what: str
    detail: str
    kind: str


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Comparisons of arms with the baseline, counted by verdict, and the lost ones, duels included."""

    arms: tuple[str, ...]
    better: int
    worse: int
    undecided: int
    losses: tuple[Loss, ...]

    @property
    def total(self) -> int:
        """All that have a verdict."""
        return self.better + self.worse + self.undecided

    @property
    def by_chance(self) -> float:
        """Of so many comparisons, how many would have a wrong verdict by chance if no arm differed."""
        return self.total / WRONG_IN


def kind_of(versus: Versus | None) -> str:
    """How a comparison is shown: by its verdict; without one, behind where the mean is."""
    if versus is None:
        return ""
    if versus.verdict is not None:
        return KINDS[versus.verdict]
    return "behind" if versus.is_behind else ""


def point_tables(result: SweepResult, point: Mapping[str, Any], found: Values) -> Iterator[ReportTable]:
    """The found values in groups, then the duels by worst and by p99 TBT."""
    groups: dict[str, dict[str, Sequence[ArmValue]]] = {}
    for name, values in found.items():
        groups.setdefault(_group_of(name), {})[name] = values
    for title in (*GROUPS, OTHER_GROUP):
        if title in groups:
            yield _scalar_table(title, result.at(point), groups[title])
    for tbt in gap_scalars(result.at(point)):
        yield _duel_table(result, point, tbt)


def outcomes(result: SweepResult, found: Sequence[tuple[Mapping[str, Any], Values]]) -> Outcomes:
    """Count verdicts over points with their values, of the rivals' arms where there are any."""
    titles = titles_of(result.cells)
    rivals = [arm for arm in result.arms if result.of_arm(arm)[0].mode == RIVAL_MODE] or result.arms
    verdicts: list[str | None] = []
    losses: list[Loss] = []
    for point, scalars in found:
        where = point_text(point)
        for name, values in scalars.items():
            compared = [each for each in values if each.arm in rivals and each.versus is not None]
            verdicts += [each.versus.verdict for each in compared if each.versus is not None]
            losses += [
                Loss(where, titles[each.arm], SCALARS[name].title, versus_text(each.versus), kind)
                for each in compared
                if (kind := kind_of(each.versus)) in ("loses", "behind")
            ]
        losses += _lost_duels(result, point, titles)
    better, worse, undecided = (verdicts.count(name) for name in KINDS)
    return Outcomes(tuple(titles[arm] for arm in rivals), better, worse, undecided, tuple(losses))


def _group_of(name: str) -> str:
    return next((title for title, starts in GROUPS.items() if name.startswith(starts)), OTHER_GROUP)


def _scalar_table(title: str, cells: Sequence[CellResult], found: Values) -> ReportTable:
    titles = titles_of(cells)
    scales = {name: scale_of(name, values) for name, values in found.items()}
    columns = [
        [
            ReportCell(
                ABSENT if each.mean is None else scales[name].shown(each.mean, each.interval),
                versus_text(each.versus),
                kind_of(each.versus),
            )
            for each in values
        ]
        for name, values in found.items()
    ]
    rows = tuple(
        (
            ReportCell(titles[cell.arm]),
            *values,
            ReportCell(failures_text(cell)),
            ReportCell(coverage_text(cell)),
        )
        for cell, *values in zip(cells, *columns, strict=True)
    )
    shown = (heading(name, scale) for name, scale in scales.items())
    return ReportTable(title, ("arm", *shown, "requests failed", COVERAGE), rows)


def _duel_table(result: SweepResult, point: Mapping[str, Any], tbt: str) -> ReportTable:
    table = duel_table(result, point, tbt)
    covered = {cell.arm: coverage_text(cell) for cell in result.at(point)}
    rows = []
    for row, each in zip(table.rows, point_duels(result, point, tbt), strict=True):
        kind = "loses" if each.is_lost else ""
        rival = ABSENT if each.duel.rival is None else covered[each.duel.rival.arm]
        texts = (*row, covered[each.duel.baseline.arm], rival)
        rows.append(tuple(ReportCell(text, kind=kind) for text in texts))
    header = (*table.header, COVERAGE, "the same of the rival")
    return ReportTable(f"Duels at equal or better {SCALARS[tbt].title}", header, tuple(rows), table.notes)


def _lost_duels(result: SweepResult, point: Mapping[str, Any], titles: Mapping[str, str]) -> Iterator[Loss]:
    for tbt in gap_scalars(result.at(point)):
        for each in point_duels(result, point, tbt):
            if each.is_lost:
                rival = "no arm" if each.duel.rival is None else titles[each.duel.rival.arm]
                what = f"duel with {titles[each.duel.baseline.arm]} at equal or better {SCALARS[tbt].title}"
                detail = versus_text(each.versus) or outcome(each)
                yield Loss(point_text(point), rival, what, detail, "loses")
