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

from sglang_layered_lab.bench.spec import BenchSpec, located, spec_from, text_of
from sglang_layered_lab.bench.spec_errors import SpecError, bad_file_name, gathered, raise_all
from sglang_layered_lab.bench.spec_keys import Checked, as_seed, count_of, in_seconds, plain
from sglang_layered_lab.bench.spec_lines import parse_toml
from sglang_layered_lab.bench.spec_values import convert

OWN_SECTIONS = ("sweep", "arms", "grid")
MOST_CELLS = 10_000


@dataclass(frozen=True, slots=True)
class SweepSettings(Checked):
    """The section [sweep]."""

    name: Annotated[str, plain("names the folder")]
    title: Annotated[str, plain("of reports; absent: the name")] = ""
    rounds: Annotated[
        int,
        count_of(
            "rounds", "in each of them every cell has its turn, arms in an order drawn anew", most=10_000
        ),
    ] = 3
    max_servers: Annotated[
        int,
        count_of(
            "servers",
            "alive at once, those without a turn stopped; more arms than this start anew each round",
        ),
    ] = 4
    warmup_requests: Annotated[
        int, count_of("requests", "sent one by one to every server after its start, not measured", least=0)
    ] = 2
    seed: Annotated[int, as_seed("of the order, and of the cells' loads")] = 0
    timeout_s: Annotated[float, in_seconds("of one turn of a cell")] = 600.0

    def problems(self) -> Iterator[SpecError]:
        """Give a name that cannot be a file's."""
        yield from bad_file_name("name", self.name)


@dataclass(frozen=True, slots=True)
class Arm(Checked):
    """One way to serve. `mode` groups arms in pictures; `label` names the arm within its mode."""

    name: Annotated[str, plain("names its records")]
    mode: Annotated[str, plain("groups arms in pictures")]
    label: Annotated[str, plain("names the arm within its mode; absent: the name")] = ""
    flags: Annotated[tuple[str, ...], plain("added to server.flags")] = ()
    changes: Annotated[dict[str, Any], plain("dotted keys of a bench spec and their values")] = field(
        default_factory=dict
    )

    def problems(self) -> Iterator[SpecError]:
        """Give a name that cannot be a file's."""
        yield from bad_file_name("name", self.name)

    @property
    def title(self) -> str:
        """What pictures and tables call the arm."""
        return self.label or self.name


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
    if "sweep" not in values:
        raise SpecError(("sweep",), "is missing; add the section [sweep] with a name")
    if "run" in values:
        raise SpecError(("run",), "a sweep has its own; use [sweep] with name, rounds, seed, timeout_s")
    settings, arms = _settings_and_arms(values)
    grid = dict(_grid(convert(dict[str, Any], values.get("grid", {}), ("grid",))))
    if (num_cells := len(arms) * prod(map(len, grid.values()))) > MOST_CELLS:
        raise SpecError(("grid",), f"makes {num_cells:,} cells; give at most {MOST_CELLS:,}")
    base = {key: each for key, each in values.items() if key not in OWN_SECTIONS}
    points = [dict(zip(grid, each, strict=True)) for each in product(*grid.values())]
    cells: list[Cell] = []
    errors: list[SpecError] = []
    for point in points:
        for index, arm in enumerate(arms):
            with gathered(errors):
                cells.append(Cell(arm, point, _cell_spec(base, settings, index, arm, point, folder)))
    raise_all(errors)
    _check_settings(cells)
    return SweepSpec(settings, arms, grid, tuple(cells))


def _settings_and_arms(values: Mapping[str, Any]) -> tuple[SweepSettings, tuple[Arm, ...]]:
    errors: list[SpecError] = []
    with gathered(errors):
        settings: SweepSettings = convert(SweepSettings, values["sweep"], ("sweep",))
    with gathered(errors):
        arms: tuple[Arm, ...] = convert(tuple[Arm, ...], values.get("arms", []), ("arms",))
    raise_all(errors)
    if not arms:
        raise SpecError(("arms",), "is missing; add [[arms]] with name and mode")
    if len({arm.name for arm in arms}) != len(arms):
        raise SpecError(("arms",), "two arms have the same name; give each its own")
    return settings, arms


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


def _grid(table: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for key, values in table.items():
        if not isinstance(values, list) or not values:
            raise SpecError(("grid", key), "give a list of values; quote a dotted key")
        yield key, tuple(values)


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
            _put(values, key, value, where)
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


def _put(values: dict[str, Any], key: str, value: Any, where: tuple[str | int, ...]) -> None:
    *parents, last = key.split(".")
    table = values
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise SpecError((*where, key), f"{parent} is no table of a bench spec; give another key")
    table[last] = value
