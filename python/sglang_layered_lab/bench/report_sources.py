"""Where a report's figures come from: arms, machine, versions, files. Nothing is measured here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sglang_layered_lab.bench.figure_data import titles_of
from sglang_layered_lab.bench.sweep_result import MANIFEST, CellResult, SweepResult
from sglang_layered_lab.bench.tables import Table, point_text


@dataclass(frozen=True, slots=True)
class RecordLink:
    """A file that figures come from; `href` leads to it from the report."""

    name: str
    what: str
    href: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Origin:
    """What some records were made with, as names and values: versions, machine, commit, patches."""

    records: str
    facts: tuple[tuple[str, str], ...]


def arms_table(result: SweepResult) -> Table:
    """What each arm is: its mode and the flags of its server."""
    cells = [result.of_arm(arm)[0] for arm in result.arms]
    rows = tuple(
        (cell.label, cell.arm, cell.mode, " ".join(cell.record.spec.get("server", {}).get("flags", ())))
        for cell in cells
    )
    return Table(("arm", "name", "mode", "server flags"), rows)


def origins(result: SweepResult) -> list[Origin]:
    """One for each set of records that were made with the same."""
    found: dict[str, list[CellResult]] = {}
    for cell in result.cells:
        found.setdefault(json.dumps(cell.record.made_with, sort_keys=True), []).append(cell)
    return [
        Origin(
            "all records" if len(found) == 1 else ", ".join(cell.record_path.name for cell in cells),
            tuple(_flat(json.loads(text))),
        )
        for text, cells in found.items()
    ]


def doubts(result: SweepResult) -> list[str]:
    """What servers said against their own figures, once each, with the records that have it."""
    found: dict[str, dict[str, None]] = {}
    for cell in result.cells:
        for repetition in cell.record.repetitions:
            for doubt in repetition.usage["doubts"]:
                found.setdefault(doubt, {})[cell.record_path.name] = None
    return [f"{doubt} ({', '.join(names)})" for doubt, names in found.items()]


def load_text(result: SweepResult) -> str:
    """Load, workload and limits of the first record as JSON; other points differ from it by their keys."""
    spec = result.cells[0].record.spec
    shown = {name: spec[name] for name in ("load", "workload", "slo") if spec.get(name)}
    return json.dumps(shown, indent=1)


def links(result: SweepResult, out: Path) -> Iterator[RecordLink]:
    """The manifest and every record, as seen from the folder `out`."""
    titles = titles_of(result.cells)
    yield _link(result.cells[0].record_path.parent / MANIFEST, "manifest of the sweep", out)
    for cell in result.cells:
        rounds = len(cell.record.repetitions)
        what = f"{titles[cell.arm]}; {point_text(cell.point)}; {rounds} round(s)"
        yield _link(cell.record_path, what, out)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{key}", "unknown" if value is None else str(value)


def _link(path: Path, what: str, out: Path) -> RecordLink:
    href = quote(Path(os.path.relpath(path.resolve(), out.resolve())).as_posix())
    return RecordLink(path.name, what, href, sha256(path.read_bytes()).hexdigest())
