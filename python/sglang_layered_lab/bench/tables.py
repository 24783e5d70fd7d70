"""A sweep's figures as tables, for documents and for the HTML report, where what loses is shown. Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_layered_lab.bench.figure_data import gap_scalars, titles_of
from sglang_layered_lab.bench.intervals import Interval
from sglang_layered_lab.bench.ratios import Verdict, Versus
from sglang_layered_lab.bench.scalars import PHASES, SCALARS, Unit
from sglang_layered_lab.bench.sweep_compare import RIVAL_MODE, ArmValue, Duel, point_duels, point_values
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult

ABSENT = "-"
COVERAGE = "expert coverage %: prompt / hybrid / decode"
KINDS: Mapping[Verdict, str] = {"better": "wins", "worse": "loses", "undecided": "undecided"}
WRONG_IN = 20  # one of so many verdicts at 95 % is wrong by chance


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell: `detail` stands under the text, `kind` is wins, loses, behind, undecided or empty."""

    text: str
    detail: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header; `notes` are what a reader has to know beside it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The texts in Markdown, the notes behind them."""
        rows = [[cell.text for cell in row] for row in self.rows]
        return "\n\n".join([to_markdown(self.header, rows), *self.notes])


@dataclass(frozen=True, slots=True)
class Scale:
    """What a scalar's values are multiplied by to be shown in `unit`."""

    unit: str
    factor: float

    @classmethod
    def of(cls, unit: Unit, values: Sequence[float]) -> "Scale":
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

    def shown(self, value: float | None, interval: Interval | None) -> str:
        """A value and the ends of its interval."""
        if value is None:
            return ABSENT
        ends = "" if interval is None else f" [{self.number(interval.low)}, {self.number(interval.high)}]"
        return self.number(value) + ends


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars and line ends in cells are made harmless."""
    lines = [[" ".join(each.replace("|", "\\|").split()) for each in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def point_text(point: Mapping[str, Any]) -> str:
    """A point of the grid in words; "all" where there is no grid."""
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in point.items()}
    return ", ".join(f"{key.rpartition('.')[2]} = {value}" for key, value in shown.items()) or "all"


def versus_text(versus: Versus | None) -> str:
    """The ratio to the baseline with interval, verdict and precision; empty for the baseline itself."""
    if versus is None:
        return ""
    dropped = f"; {versus.num_dropped} round(s) dropped" if versus.num_dropped else ""
    if versus.ratio is None:
        behind = "no ratio: a value is 0; " + ("behind" if versus.is_behind else "not behind")
        return (behind if versus.num_pairs else "no round in common") + dropped
    interval = versus.ratio.interval
    if interval is None:
        return f"x{_ratio(versus.ratio.value)}, one round: no interval{dropped}"
    width = "" if versus.ratio.is_precise else ", not precise"
    ends = f"[{_ratio(interval.low)}, {_ratio(interval.high)}]"
    return f"x{_ratio(interval.value)} {ends} {versus.verdict}{width}{dropped}"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.3g}"


def kind_of(versus: Versus | None) -> str:
    """How a comparison is shown: by its verdict; without one, behind where the mean is."""
    if versus is None:
        return ""
    return KINDS[versus.verdict] if versus.verdict else "behind" if versus.is_behind else ""


def coverage_text(cell: CellResult) -> str:
    """Measured expert coverage in % by phase: prompt, hybrid, decode."""
    means = [cell.mean(f"coverage_{phase}") for phase in PHASES]
    if all(mean is None for mean in means):
        return "not measured"
    return " / ".join(Scale("%", 100).shown(mean, None) for mean in means)


def scalar_table(
    result: SweepResult,
    point: Mapping[str, Any],
    baseline: str,
    names: Sequence[str] = tuple(SCALARS),
    title: str = "",
) -> Table:
    """Every arm's scalars at a point: mean and interval over rounds, failures and coverage beside them."""
    cells = result.at(point)
    titles = titles_of(cells)
    found = point_values(result, point, baseline, names)
    columns = dict(_column(name, values) for name, values in found.items())
    rows = tuple(
        (
            Cell(titles[cell.arm]),
            *values,
            Cell(f"{cell.due.is_failed.sum()} of {len(cell.due)}"),
            Cell(coverage_text(cell)),
        )
        for cell, *values in zip(cells, *columns.values(), strict=True)
    )
    header = ("arm", *columns, "failed of due", COVERAGE)
    return Table(title, header, rows, tuple(notes_of(cells, baseline, names)))


def _column(name: str, values: Sequence[ArmValue]) -> tuple[str, list[Cell]]:
    """Its heading, which names the unit, and its cells."""
    scalar = SCALARS[name]
    scale = Scale.of(scalar.unit, [each.mean for each in values if each.mean is not None])
    cells = [
        Cell(scale.shown(each.mean, each.interval), versus_text(each.versus), kind_of(each.versus))
        for each in values
    ]
    return f"{scalar.title}, {scale.unit}" if scale.unit else scalar.title, cells


def notes_of(cells: Sequence[CellResult], baseline: str, names: Sequence[str]) -> Iterator[str]:
    """What to know of these scalars of all arms at a point: what was not measured, and how often the rest."""
    wanted = [name for name in names if SCALARS[name].better]
    absent = [SCALARS[name].title for name in wanted if not any(cell.known(name) for cell in cells)]
    if absent:
        yield f"Not measured here: {'; '.join(absent)}."
    if baseline not in {cell.arm for cell in cells}:
        yield f"The baseline {baseline} has no record here: no ratios."
    yield from _round_notes(cells)


def _round_notes(cells: Sequence[CellResult]) -> Iterator[str]:
    counts = {len(cell.record.repetitions) for cell in cells}
    if counts == {1}:
        yield "One round: no interval."
    elif len(counts) > 1:
        yield f"Arms have {min(counts)} to {max(counts)} rounds."


def duel_table(
    result: SweepResult, point: Mapping[str, Any], tbt: str | None = None, rival_mode: str = RIVAL_MODE
) -> Table:
    """Every arm of another mode against the best rival at equal or better TBT; lost duels say so."""
    cells = result.at(point)
    tbt = tbt or next(iter(gap_scalars(cells)))
    found = point_duels(result, point, tbt, rival_mode)
    rival = f"best {rival_mode} arm at equal or better TBT"
    ours, theirs = ("arm", "TTFT, s", f"{SCALARS[tbt].title}, ms"), (rival, "its TTFT, s", "its TBT, ms")
    header = (*ours, *theirs, "TTFT ratio", "outcome", COVERAGE, "the same of the rival")
    title = f"Duels at equal or better {SCALARS[tbt].title}"
    if not found:
        notes = (f"No duels: no arm of mode {rival_mode} here, or no other.",)
        return Table(title, header, (), notes)
    note = "TTFT and TBT are means over rounds; the rival is chosen by them."
    rows = tuple(tuple(_duel_row(each, cells)) for each in found)
    return Table(title, header, rows, (note, *_round_notes(cells)))


def _duel_row(duel: Duel, cells: Sequence[CellResult]) -> Iterator[Cell]:
    titles, kind = titles_of(cells), "loses" if duel.is_lost else ""
    covered = {cell.arm: coverage_text(cell) for cell in cells}
    texts = []
    for place in (duel.baseline, duel.rival):
        if place is None:
            texts += ["none", ABSENT, ABSENT]
        else:
            texts += [titles[place.arm], f"{place.ttft_s:.3f}", f"{1e3 * place.tbt_s:.1f}"]
    texts += [versus_text(duel.versus) or ABSENT, outcome(duel), covered[duel.baseline.arm]]
    texts.append(ABSENT if duel.rival is None else covered[duel.rival.arm])
    return (Cell(text, kind=kind) for text in texts)


def outcome(duel: Duel) -> str:
    """How the rival did."""
    if duel.rival is None:
        return "loses: no rival has such a TBT"
    is_undecided = duel.versus is not None and duel.versus.verdict == "undecided"
    return ("loses" if duel.is_lost else "wins") + (", undecided" if is_undecided else "")


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
    """Comparisons of arms with the baseline, counted by verdict, and the lost ones, duels included.

    `by_chance` of so many would have a wrong verdict if no arm differed.
    """

    arms: tuple[str, ...]
    better: int
    worse: int
    undecided: int
    by_chance: float
    losses: tuple[Loss, ...]


def outcomes(result: SweepResult, baseline: str, names: Sequence[str] = tuple(SCALARS)) -> Outcomes:
    """Count verdicts over all points, of the rivals' arms where there are any."""
    titles = titles_of(result.cells)
    rivals = [arm for arm in result.arms if result.of_arm(arm)[0].mode == RIVAL_MODE] or result.arms
    verdicts, losses = [], []
    for point in result.points:
        where = point_text(point)
        for name, values in point_values(result, point, baseline, names).items():
            for each in values:
                if each.versus is None or each.arm not in rivals:
                    continue
                verdicts.append(each.versus.verdict)
                if (kind := kind_of(each.versus)) in ("loses", "behind"):
                    text = versus_text(each.versus)
                    losses.append(Loss(where, titles[each.arm], SCALARS[name].title, text, kind))
        losses += _lost_duels(result, point, titles)
    better, worse, undecided = (verdicts.count(name) for name in KINDS)
    by_chance = (better + worse + undecided) / WRONG_IN
    return Outcomes(tuple(titles[arm] for arm in rivals), better, worse, undecided, by_chance, tuple(losses))


def _lost_duels(result: SweepResult, point: Mapping[str, Any], titles: Mapping[str, str]) -> Iterator[Loss]:
    for tbt in gap_scalars(result.at(point)):
        for each in point_duels(result, point, tbt):
            if each.is_lost:
                rival = "no arm" if each.rival is None else titles[each.rival.arm]
                what = f"duel with {titles[each.baseline.arm]} at equal or better {SCALARS[tbt].title}"
                yield Loss(point_text(point), rival, what, versus_text(each.versus) or outcome(each), "loses")
