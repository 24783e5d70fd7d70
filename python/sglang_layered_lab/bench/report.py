"""The HTML report of sweeps and single records: one page that needs no other file, with hashes."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from sglang_layered_lab.bench.figure_data import gap_scalars, titles_of
from sglang_layered_lab.bench.pages import inline, render, write_page
from sglang_layered_lab.bench.pictures import Missing, Picture, pictures_at, pictures_over_rates
from sglang_layered_lab.bench.scalars import SCALARS
from sglang_layered_lab.bench.sweep_compare import baseline_of, check_baseline
from sglang_layered_lab.bench.sweep_result import MANIFEST, CellResult, SweepResult
from sglang_layered_lab.bench.tables import Table, duel_table, notes_of, outcomes, point_text, scalar_table

GROUPS: Mapping[str, tuple[str, ...]] = {  # beginnings of scalars' names; the last group has the others
    "To the first token, and to the end": ("ttft", "e2e"),
    "Between tokens": ("tbt", "worst_gap", "beside", "tpot", "stall"),
    "Experts and energy": ("expert", "coverage", "joules"),
    "Limits and throughput": ("",),
}


def read_all(sources: Sequence[Path], baseline: str | None = None) -> list[SweepResult]:
    """Read folders of sweeps, and records: all records together are the arms of one sweep, the last.

    A sweep that has the name of another before it gets a number.

    Raises:
        BenchError: a folder holds no sweep, a file is no record, or none of them has the baseline.
    """
    records = [path for path in sources if path.is_file()]
    results = [SweepResult.read(path) for path in sources if path not in records]
    results += [SweepResult.of_records(records)] if records else []
    check_baseline(results, baseline)
    names = [result.name for result in results]
    counts = [names[:index].count(name) for index, name in enumerate(names)]
    return [
        replace(result, name=f"{result.name}-{count + 1}") if count else result
        for result, count in zip(results, counts, strict=True)
    ]


def write_report(sources: Sequence[Path], out: Path, *, baseline: str | None = None) -> Path:
    """Write the report of these sweeps and records; return its page.

    Args:
        sources: folders that `bench sweep` wrote, one section each, and records of `bench run`.
        out: the page; or a folder, which gets it as `index.html`.
        baseline: the arm that the others are compared with; each sweep's first one if left out.

    Raises:
        BenchError: as `read_all`.
    """
    results = read_all(sources, baseline)
    sections = [_section(result, baseline_of(result, baseline)) for result in results]
    return write_page(out, render("report.html.j2", sections=sections))


def _section(result: SweepResult, baseline: str) -> dict[str, Any]:
    """What the template shows of a sweep, by its names there."""
    spec = result.cells[0].record.spec
    load = {name: spec[name] for name in ("load", "workload", "slo") if spec.get(name)}
    return {
        "name": result.name,
        "title": result.title,
        "baseline": titles_of(result.cells)[baseline],
        "num_missing": result.num_missing,
        "arms": _arms(result),
        "load": json.dumps(load, indent=1),
        "origins": list(_origins(result)),
        "doubts": _doubts(result),
        "outcomes": outcomes(result, baseline),
        "over_rates": _drawn(pictures_over_rates(result)),
        "points": [
            {
                "title": point_text(point),
                "pictures": _drawn(pictures_at(result, point, baseline)),
                "tables": list(_tables(result, point, baseline)),
                "notes": list(notes_of(result.at(point), baseline, tuple(SCALARS))),
            }
            for point in result.points
        ],
        "records": list(_records(result)),
    }


def _drawn(pictures: Iterable[Picture | Missing]) -> list[dict[str, str | None]]:
    return [
        {"title": each.title, "text": each.why, "svg": None}
        if isinstance(each, Missing)
        else {"title": each.title, "text": each.caption, "svg": inline(each)}
        for each in pictures
    ]


def _tables(result: SweepResult, point: Mapping[str, Any], baseline: str) -> Iterator[Table]:
    """The scalars in groups, then the duels by worst and by p99 TBT."""
    left = [name for name in SCALARS if any(cell.known(name) for cell in result.at(point))]
    for title, starts in GROUPS.items():
        names = [name for name in left if name.startswith(starts)]
        left = [name for name in left if name not in names]
        if names:
            yield replace(scalar_table(result, point, baseline, names, title), notes=())
    for tbt in gap_scalars(result.at(point)):
        yield duel_table(result, point, tbt)


def _arms(result: SweepResult) -> list[tuple[str, ...]]:
    """What each arm is: label, name, mode, flags of its server."""
    cells = [result.of_arm(arm)[0] for arm in result.arms]
    flags = [" ".join(cell.record.spec.get("server", {}).get("flags", ())) for cell in cells]
    return [(cell.label, cell.arm, cell.mode, each) for cell, each in zip(cells, flags, strict=True)]


def _origins(result: SweepResult) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Which records were made with the same versions, machine, commit and patches, and with which."""
    found: dict[str, list[CellResult]] = {}
    for cell in result.cells:
        found.setdefault(json.dumps(cell.record.made_with, sort_keys=True), []).append(cell)
    for text, cells in found.items():
        names = ", ".join(cell.record_path.name for cell in cells)
        yield "all records" if len(found) == 1 else names, list(_flat(json.loads(text)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{key}", "unknown" if value is None else str(value)


def _doubts(result: SweepResult) -> list[str]:
    """What servers said against their own figures, once each, with the records that have it."""
    found: dict[str, dict[str, None]] = {}
    for cell in result.cells:
        for repetition in cell.record.repetitions:
            for doubt in repetition.usage["doubts"]:
                found.setdefault(doubt, {})[cell.record_path.name] = None
    return [f"{doubt} ({', '.join(names)})" for doubt, names in found.items()]


def _records(result: SweepResult) -> Iterator[dict[str, str]]:
    """The manifest, where there is one, and every record with its hash."""
    titles = titles_of(result.cells)
    manifest = result.cells[0].record_path.parent / MANIFEST
    files = {manifest: "manifest of the sweep"} if result.has_manifest else {}
    for cell in result.cells:
        rounds = len(cell.record.repetitions)
        files[cell.record_path] = f"{titles[cell.arm]}; {point_text(cell.point)}; {rounds} round(s)"
    for path, what in files.items():
        yield {"name": path.name, "what": what, "sha256": sha256(path.read_bytes()).hexdigest()}
