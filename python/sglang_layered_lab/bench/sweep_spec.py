"""The spec of a sweep: a bench spec, arms that add server flags to it, and a grid of values of its keys.

One TOML file: the sections of a bench spec but [run], then [sweep], [[arms]] and [grid]. A cell is an arm at
a point of the grid; every cell is a whole bench spec, with one repetition a round.
"""

import copy
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic.dataclasses import dataclass

from sglang_layered_lab.bench import spec_keys as of
from sglang_layered_lab.bench.spec import BenchSpec, spec_from
from sglang_layered_lab.bench.spec_errors import Keys, SpecError, gathered, located, raise_all, read_toml

MOST_CELLS = 10_000


@dataclass(frozen=True)
class SweepSettings(of.Section):
    """The section [sweep]."""

    name: Annotated[of.FileName, "names the folder"]
    title: Annotated[str, "of reports; absent: the name"] = ""
    rounds: Annotated[of.Few, "every cell has its turn in each, arms in an order drawn anew"] = 3
    max_servers: Annotated[of.Count, "alive at once; with more arms they start anew each round"] = 4
    warmup_requests: Annotated[
        of.CountOr0, "sent one by one to every server after its start, not measured"
    ] = 2
    seed: Annotated[of.Seed, "of the order, and of the cells' loads"] = 0
    timeout_s: Annotated[of.Seconds, "of one turn of a cell"] = 600.0


@dataclass(frozen=True)
class Arm(of.Section):
    """One way to serve. `mode` groups arms in pictures; `label` names the arm within its mode."""

    name: Annotated[of.FileName, "names its records"]
    mode: Annotated[str, "groups arms in pictures"]
    label: Annotated[str, "names the arm within its mode; absent: the name"] = ""
    flags: Annotated[tuple[str, ...], "added to server.flags"] = ()
    without: Annotated[tuple[str, ...], "flags without a value that are left out of server.flags"] = ()
    changes: Annotated[dict[str, Any], "values of dotted keys of a bench spec"] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What pictures and tables call the arm."""
        return self.label or self.name


@dataclass(frozen=True)
class _OwnSections(of.Section):
    """What a sweep's file has beside the sections of a bench spec."""

    sweep: Annotated[SweepSettings, "the sweep as a whole"]
    arms: Annotated[tuple[Arm, ...], "what is compared"] = ()
    grid: Annotated[dict[str, of.Values], "of dotted keys"] = field(default_factory=dict)

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give what makes no cells."""
        if not self.arms:
            yield "arms", "is missing; add [[arms]] with name and mode"
        if len({arm.name for arm in self.arms}) != len(self.arms):
            yield "arms", "two arms have the same name; give each its own"
        num_cells = len(self.arms) * prod(map(len, self.grid.values()))
        if num_cells > MOST_CELLS:
            yield "grid", f"makes {num_cells:,} cells; give at most {MOST_CELLS:,}"


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """An arm at a point of the grid."""

    arm: Arm
    point: Mapping[str, Any]  # dotted keys and values
    spec: BenchSpec

    @property
    def file_name(self) -> str:
        """Name of its record."""
        return f"{self.spec.run.name}.json.gz"


@dataclasses.dataclass(frozen=True, slots=True)
class SweepSpec:
    """Everything a sweep runs; cells point by point, arms in the order of the file."""

    settings: SweepSettings
    arms: tuple[Arm, ...]
    grid: Mapping[str, Sequence[Any]]
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
        return sweep_from(read_toml(path), path.parent)


def sweep_from(values: Mapping[str, Any], folder: Path) -> SweepSpec:
    """Make a sweep of plain values; relative files start at `folder`.

    Raises:
        SpecError: it names the key and the remedy.
    """
    if "run" in values:
        raise SpecError("run", "a sweep has its own; use [sweep] with name, rounds, seed, timeout_s")
    own_values = {key: values[key] for key in _OwnSections.names() if key in values}
    own: _OwnSections = of.checked(_OwnSections, own_values)
    base = {key: each for key, each in values.items() if key not in own_values}
    cells: list[Cell] = []
    errors: list[SpecError] = []
    for point in [dict(zip(own.grid, each, strict=True)) for each in product(*own.grid.values())]:
        for index, arm in enumerate(own.arms):
            with gathered(errors):
                named = _cell_values(base, own.sweep, index, arm, point)
                cells.append(Cell(arm, point, spec_from(named, folder)))
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
            problem = f"{cell.arm.name} and {other.arm.name} share a server and only one of them sets"
            raise SpecError("arms", f"{problem} {', '.join(differing)}; set it in both")


def _cell_values(
    base: Mapping[str, Any], settings: SweepSettings, index: int, arm: Arm, point: Mapping[str, Any]
) -> dict[str, Any]:
    """Plain values of a cell's spec; `index` is the arm's place."""
    values = copy.deepcopy(dict(base))
    for where, changes in ((("grid",), point), (("arms", index, "changes"), arm.changes)):
        for key, value in changes.items():
            put(values, key, value, where)
    server = values.setdefault("server", {})
    if isinstance(server, dict):
        kept = [flag for flag in server.get("flags", ()) if flag not in arm.without]
        server["flags"] = [*kept, *arm.flags]
    name = "@".join([arm.name, *(f"{key.rpartition('.')[2]}={each}" for key, each in point.items())])
    values["run"] = {
        "name": re.sub(r"[^A-Za-z0-9._-]", "-", name),
        "repetitions": settings.rounds,
        "seed": settings.seed,
        "timeout_s": settings.timeout_s,
    }
    return values


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
