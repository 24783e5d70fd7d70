"""Simulate all cells of a spec; the record and the table of what came out."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from sglang_layered_lab.cluster.figures import CellFigures, Figures, figures_of
from sglang_layered_lab.cluster.run import simulated
from sglang_layered_lab.cluster.spec import Cell, Simulation
from sglang_layered_lab.cluster.steps import Steps, steps_of
from sglang_layered_lab.paper.capacity import RATE, Observation, conclude
from sglang_layered_lab.provenance import current_commit, installed_versions

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Simulated:
    """One cell and its figures."""

    cell: Cell
    figures: CellFigures
    steps_per_s: float  # simulated, of the machine that simulates: no part of the result


def simulate(simulation: Simulation, heard: Callable[[Cell], None] = lambda cell: None) -> list[Simulated]:
    """Run every cell; `heard` is told of each before it runs.

    Raises:
        SpecError: a load cannot be drawn.
        BenchError: a trace cannot be read.
        ConfigError: a policy or a model is unknown.
    """
    settings, found = simulation.settings, []
    known: dict[str, Steps] = {}
    for cell in simulation.cells:
        heard(cell)
        key = repr(cell.spec.steps)
        steps = known.setdefault(key, known.get(key) or steps_of(cell.spec.steps, simulation.folder))
        start_s = time.perf_counter()
        outcomes = [
            simulated(cell.spec, steps, simulation.folder, settings.seed, index)
            for index in range(settings.rounds)
        ]
        figures = figures_of(outcomes)
        found.append(Simulated(cell, figures, figures.num_steps / (time.perf_counter() - start_s)))
    return found


def record_of(simulation: Simulation, found: Sequence[Simulated]) -> dict[str, Any]:
    """JSON values: the spec, the versions that made it, the figures. The same seed gives the same ones."""
    return {
        "format": FORMAT,
        "spec": simulation.values,
        "made_with": {"commit": current_commit(), "versions": installed_versions("numpy", "scipy")},
        "capacity_per_s": capacities(found),
        "cells": [
            {
                "arm": each.cell.arm,
                "point": each.cell.point,
                "figures": _given(asdict(each.figures)),
            }
            for each in found
        ],
    }


def capacities(found: Sequence[Simulated]) -> dict[str, dict[str, str]]:
    """By arm: the rate at which 90 % still attain their limits, and that at which they are on their lines.

    Only of a grid over rates alone.
    """
    if any(list(each.cell.point) != [RATE] for each in found):
        return {}
    measures: dict[str, Callable[[Figures], float | None]] = {
        "attained": lambda figures: figures.attained,
        "on_line": lambda figures: figures.on_line,
    }
    rates: dict[str, dict[str, str]] = {}
    for arm in dict.fromkeys(each.cell.arm for each in found):
        for name, measure in measures.items():
            seen = [
                Observation(each.cell.point[RATE], part)
                for each in found
                if each.cell.arm == arm and (part := measure(each.figures.all)) is not None
            ]
            if seen:
                rates.setdefault(arm, {})[name] = str(conclude(seen))
    return rates


def table_of(simulation: Simulation, found: Sequence[Simulated]) -> Table:
    """A row for every class of every cell; times in ms."""
    settings = simulation.settings
    points = list(dict.fromkeys(key for each in found for key in each.cell.point))
    table = Table(
        *(key.rpartition(".")[2] for key in points),
        "arm", "class", "requests", "TTFT mean", "p50", "p99", "TPOT mean", "gap p99", "worst gap mean",
        "limits met", "TTFT met", "gaps met", "on line", "tokens/s", "busy",
        title=f"{settings.title or settings.name}, simulated; times in ms",
    )  # fmt: skip
    for each in found:
        for kind in each.figures.kinds:
            of_all = [f"{each.figures.output_tokens_per_s:.0f}", f"{each.figures.busy:.0%}"]
            last = of_all if kind is each.figures.all else ["", ""]
            gap = _ms(each.figures.gap_p99_s) if kind is each.figures.all else ""
            where = [str(each.cell.point.get(key, "")) for key in points]
            table.add_row(*where, each.cell.arm, kind.kind, *_row(kind, gap), *last)
    return table


def _row(kind: Figures, gap: str) -> Iterator[str]:
    yield str(kind.num_requests)
    yield from (_ms(value) for value in (kind.ttft.mean, kind.ttft.p50, kind.ttft.p99))
    yield _ms(kind.tpot.mean if kind.tpot else None)
    yield gap
    yield _ms(kind.worst_gap.mean if kind.worst_gap else None)
    for part in (kind.attained, kind.in_time, kind.steady, kind.on_line):
        yield "-" if part is None else f"{part:.1%}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"


def _given(value: Any) -> Any:
    """Without what is unset; numbers with six digits."""
    if isinstance(value, Mapping):
        return {key: _given(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_given(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
