"""The HTML report of sweeps: one page with its pictures beside it and the records linked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from sglang_layered_lab.bench.figure_data import titles_of
from sglang_layered_lab.bench.pictures import Format, Missing, Picture, pictures_at, pictures_over_rates
from sglang_layered_lab.bench.report_sources import (
    Origin,
    RecordLink,
    arms_table,
    doubts,
    links,
    load_text,
    origins,
)
from sglang_layered_lab.bench.report_tables import Outcomes, ReportTable, outcomes, point_tables
from sglang_layered_lab.bench.scalars import SCALARS
from sglang_layered_lab.bench.sweep_compare import baseline_of, check_baseline, point_values
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.bench.tables import Table, point_text, round_notes

PAGE = "index.html"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture's file beside the page, or why there is none."""

    title: str
    text: str
    file: str | None


@dataclass(frozen=True, slots=True)
class PointSection:
    """One point of the grid."""

    title: str
    pictures: tuple[Drawn, ...]
    tables: tuple[ReportTable, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SweepSection:
    """One sweep."""

    name: str
    title: str
    baseline: str
    num_missing: int
    arms: Table
    load: str
    origins: tuple[Origin, ...]
    doubts: tuple[str, ...]
    outcomes: Outcomes
    over_rates: tuple[Drawn, ...]
    points: tuple[PointSection, ...]
    links: tuple[RecordLink, ...]


def read_all(folders: Sequence[Path], baseline: str | None = None) -> list[SweepResult]:
    """Read sweeps; one that has the name of another before it gets a number.

    Raises:
        BenchError: a folder holds no sweep, or none of them has the baseline.
    """
    results = [SweepResult.read(folder) for folder in folders]
    check_baseline(results, baseline)
    names = [result.name for result in results]
    counts = [names[:index].count(name) for index, name in enumerate(names)]
    return [
        replace(result, name=f"{result.name}-{count + 1}") if count else result
        for result, count in zip(results, counts, strict=True)
    ]


def write_report(
    folders: Sequence[Path], out: Path, *, baseline: str | None = None, form: Format = "png"
) -> Path:
    """Write the report of these sweeps' folders; return its page.

    Args:
        folders: what `bench sweep` wrote, one section each.
        out: the folder that the page and its pictures go to.
        baseline: the arm that the others are compared with; each sweep's first one if left out.
        form: what pictures are saved as.

    Raises:
        BenchError: a folder holds no sweep, or none of them has the baseline.
    """
    results = read_all(folders, baseline)
    out.mkdir(parents=True, exist_ok=True)
    sections = [_section(result, out, baseline_of(result, baseline), form) for result in results]
    path = out / PAGE
    path.write_text(page(sections), encoding="utf-8")
    return path


def page(sections: Sequence[SweepSection]) -> str:
    """The HTML of these sections; whatever they hold is escaped."""
    loader = PackageLoader("sglang_layered_lab.bench", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(sections=sections)


def _section(result: SweepResult, out: Path, baseline: str, form: Format) -> SweepSection:
    found = [(point, point_values(result, point, baseline)) for point in result.points]
    points = []
    for point, values in found:
        cells = result.at(point)
        absent = [each.title for name, each in SCALARS.items() if name not in values]
        notes = [f"Not measured: {'; '.join(absent)}."] if absent else []
        if baseline not in {cell.arm for cell in cells}:
            notes.append(f"The baseline {baseline} has no record here: no ratios.")
        points.append(
            PointSection(
                title=point_text(point),
                pictures=_drawn(pictures_at(result, point, baseline), out, form),
                tables=tuple(point_tables(result, point, values)),
                notes=(*notes, *round_notes(cells)),
            )
        )
    return SweepSection(
        name=result.name,
        title=result.title,
        baseline=titles_of(result.cells)[baseline],
        num_missing=result.num_missing,
        arms=arms_table(result),
        load=load_text(result),
        origins=tuple(origins(result)),
        doubts=tuple(doubts(result)),
        outcomes=outcomes(result, found),
        over_rates=_drawn(pictures_over_rates(result), out, form),
        points=tuple(points),
        links=tuple(links(result, out)),
    )


def _drawn(pictures: Iterable[Picture | Missing], out: Path, form: Format) -> tuple[Drawn, ...]:
    return tuple(
        Drawn(each.title, each.why, None)
        if isinstance(each, Missing)
        else Drawn(each.title, each.caption, each.save(out, form).name)
        for each in pictures
    )
