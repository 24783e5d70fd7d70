"""The spec of a sweep: a bench spec, arms that add server flags to it, and a grid of values of its keys.

One TOML file: the sections of a bench spec but [run], then [sweep], [[arms]] and [grid]. A cell is an arm at
a point of the grid; every cell is a whole bench spec, with one repetition a round.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any

from sglang_layered_lab.bench import spec_keys as of
from sglang_layered_lab.bench.spec import BenchSpec, spec_from
from sglang_layered_lab.bench.spec_errors import (
    SpecError,
    checked,
    gathered,
    located,
    parse_toml,
    raise_all,
    text_of,
)

OWN_SECTIONS = ("sweep", "arms", "grid")
MOST_CELLS = 10_000


@of.section
class SweepSettings(of.Section):
    """The section [sweep]."""

    name: Annotated[str, of.file_name, "names the folder"]
    title: Annotated[str, "of reports; absent: the name"] = ""
    rounds: Annotated[of.Few, "every cell has its turn in each, arms in an order drawn anew"] = 3
    max_servers: Annotated[of.Count, "alive at once; with more arms they start anew each round"] = 4
    warmup_requests: Annotated[
        of.CountOr0, "sent one by one to every server after its start, not measured"
    ] = 2
    seed: Annotated[of.Seed, "of the order, and of the cells' loads"] = 0
    timeout_s: Annotated[of.Seconds, "of one turn of a cell"] = 600.0


@of.section
class Arm(of.Section):
    """One way to serve. `mode` groups arms in pictures; `label` names the arm within its mode."""

    name: Annotated[str, of.file_name, "names its records"]
    mode: Annotated[str, "groups arms in pictures"]
    label: Annotated[str, "names the arm within its mode; absent: the name"] = ""
    flags: Annotated[tuple[str, ...], "added to server.flags"] = ()
    changes: Annotated[dict[str, Any], "values of dotted keys of a bench spec"] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What pictures and tables call the arm."""
        return self.label or self.name


@of.section
class _OwnSections(of.Section):
    """What a sweep's file has beside the sections of a bench spec."""

    sweep: Annotated[SweepSettings, "the sweep as a whole"]
    arms: Annotated[tuple[Arm, ...], "what is compared"] = ()
    grid: Annotated[dict[str, Any], "lists of values of dotted keys"] = field(default_factory=dict)

    def problems(self) -> Iterator[SpecError]:
        """Give what makes no cells."""
        if not self.arms:
            yield SpecError(("arms",), "is missing; add [[arms]] with name and mode")
        if len({arm.name for arm in self.arms}) != len(self.arms):
            yield SpecError(("arms",), "two arms have the same name; give each its own")
        for name, values in self.grid.items():
            if not isinstance(values, list) or not values:
                yield SpecError(("grid", name), "give a list of values; quote a dotted key")


@dataclass(frozen=True, slots=True)
class Cell:
    """An arm at a point of the grid."""

    arm: Arm
    point: Mapping[str, Any]  # dotted keys and values
    spec: BenchSpec

    @property
    def file_name(self) -> str:
        """Name of its record."""
        return f"{self.spec.run.name}.json.gz"


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """Everything a sweep runs; cells point by point, arms in the order of the file."""

    settings: SweepSettings
    arms: tuple[Arm, ...]
    grid: Mapping[str, tuple[Any, ...]]
    cells: tuple[Cell, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values; the cells' own specs are in their records."""
        return {
            "sweep": asdict(self.settings),
            "arms": [asdict(arm) for arm in self.arms],
            "grid": {key: list(values) for key, values in self.grid.items()},
            "cells": [
                {"arm": cell.arm.name, "point": dict(cell.point), "record": cell.file_name}
                for cell in self.cells
            ],
        }


def read_sweep(path: Path) -> SweepSpec:
    """Read a sweep's file.

    Raises:
        BenchError: one line `FILE:LINE: KEY: what is wrong; remedy`.
    """
    with located(path):
        return sweep_from(parse_toml(text_of(path)), path.parent)


def sweep_from(values: Mapping[str, Any], folder: Path) -> SweepSpec:
    """Make a sweep of plain values; relative files start at `folder`.

    Raises:
        SpecError: it names the key and the remedy.
    """
    if "run" in values:
        raise SpecError(("run",), "a sweep has its own; use [sweep] with name, rounds, seed, timeout_s")
    own = checked(_OwnSections, {key: values[key] for key in OWN_SECTIONS if key in values})
    if (num_cells := len(own.arms) * prod(map(len, own.grid.values()))) > MOST_CELLS:
        raise SpecError(("grid",), f"makes {num_cells:,} cells; give at most {MOST_CELLS:,}")
    base = {key: each for key, each in values.items() if key not in OWN_SECTIONS}
    cells: list[Cell] = []
    errors: list[SpecError] = []
    for point in [dict(zip(own.grid, each, strict=True)) for each in product(*own.grid.values())]:
        for index, arm in enumerate(own.arms):
            with gathered(errors):
                cells.append(Cell(arm, point, _cell_spec(base, own.sweep, index, arm, point, folder)))
    raise_all(errors)
    _check_settings(cells)
    return SweepSpec(own.sweep, own.arms, own.grid, tuple(cells))


def _check_settings(cells: Sequence[Cell]) -> None:
    """Arms that share a server set the same things: what one leaves out, another has changed."""
    first: dict[str, Cell] = {}
    for cell in cells:
        server = cell.spec.server
        other = first.setdefault(json.dumps(asdict(replace(server, settings={})), sort_keys=True), cell)
        differing = sorted(server.settings.keys() ^ other.spec.server.settings.keys())
        if differing:
            raise SpecError(
                ("arms",),
                f"{cell.arm.name} and {other.arm.name} share a server and only one of them sets"
                f" {', '.join(differing)}; set it in both",
            )


def _cell_spec(
    base: Mapping[str, Any],
    settings: SweepSettings,
    index: int,
    arm: Arm,
    point: Mapping[str, Any],
    folder: Path,
) -> BenchSpec:
    values = copy.deepcopy(dict(base))
    for where, changes in ((("grid",), point), (("arms", index, "changes"), arm.changes)):
        for key, value in changes.items():
            put(values, key, value, where)
    server = values.setdefault("server", {})
    if not isinstance(server, dict):
        raise SpecError(("server",), "give a table")
    server["flags"] = [*server.get("flags", ()), *arm.flags]
    values["run"] = {
        "name": "@".join([arm.name, *(f"{key.rpartition('.')[2]}={each}" for key, each in point.items())]),
        "repetitions": settings.rounds,
        "seed": settings.seed,
        "timeout_s": settings.timeout_s,
    }
    values["run"]["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", values["run"]["name"])
    return spec_from(values, folder)


def put(values: dict[str, Any], key: str, value: Any, where: tuple[str | int, ...]) -> None:
    """Set a dotted key of plain values; `where` is the path of the table that names it.

    Raises:
        SpecError: one of the key's parents is no table.
    """
    *parents, last = key.split(".")
    table = values
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise SpecError((*where, key), f"{parent} is no table of a bench spec; give another key")
    table[last] = value
