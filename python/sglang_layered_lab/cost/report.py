"""A fit to the duels of sweeps, with the errors of what it was not shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from sglang_layered.errors import BenchError, ConfigError
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult
from sglang_layered_lab.cost.costs import LAWS, Law, StepCosts
from sglang_layered_lab.cost.coverage import COVERAGES, Coverage
from sglang_layered_lab.cost.fit import Errors, Observation, Residual, fit, held_out, residuals_of
from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.records import (
    DuelCell,
    attention_of,
    coverage_of,
    duel_cell,
    observations_of,
    shape_of,
)
from sglang_layered_lab.cost.saved import SavedFit, Seen
from sglang_layered_lab.cost.shape import ModelShape

HOLD_OUT: Mapping[str, Callable[[Observation], object]] = {
    "arm": lambda each: each.arm,
    "decode rows": lambda each: each.decode_rows,
}


@dataclass(frozen=True, slots=True)
class Configuration:
    """One arm beside so many decodes: measured, and predicted by a fit that has not seen the arm.

    `prompt_s` is all steps of the prompt together, `worst_s` the longest time that a running request waits;
    for a prompt that makes them wait both are that pause, and without any the time to first token.
    """

    arm: str
    decode_rows: int
    prompt_tokens: int
    prompt_s: float
    predicted_prompt_s: float
    worst_s: float
    predicted_worst_s: float


@dataclass(frozen=True, slots=True)
class FitReport:
    """A fit and how far it is off: `errors` by `training` and by what was held out."""

    fit: SavedFit
    errors: Mapping[str, Errors]
    other_errors: Mapping[str, Errors]  # of the law that was not taken
    configurations: tuple[Configuration, ...]
    skipped: tuple[str, ...]


def fit_sweeps(
    results: Sequence[SweepResult],
    *,
    shape: ModelShape | None = None,
    coverage: Coverage | None = None,
    law: Law | None = None,
) -> FitReport:
    """Fit a step-time model to the duels of sweeps of one model on one machine; other cells are skipped.

    Args:
        results: sweeps.
        shape: the model's sizes, where records only name it.
        coverage: None: what the servers counted, else uniform.
        law: None: the one whose held-out errors of arms have the lower median.

    Raises:
        BenchError: no cell is a duel, or they are of several models or attention backends.
    """
    cells = [cell for result in results for cell in result.cells]
    shape = shape or _only({shape_of(cell.record) for cell in cells}, "models")
    duels, skipped = _duels(cells, shape)
    coverage = coverage or coverage_of(duels) or COVERAGES["uniform"]
    attention = _only({attention_of(duel.cell.record) for duel in duels}, "attention backends")
    model = StepModel(shape, coverage, StepCosts("sum", 0.0, 0.0, 0.0), attention)
    observations = [each for duel in duels for each in observations_of(duel, model)]
    fits = [_fitted(observations, each) for each in ([law] if law else LAWS)]
    (costs, errors, out), *others = sorted(fits, key=lambda each: each[1]["arm"].median)
    saved = SavedFit(
        model=replace(model, costs=costs),
        wait_steps=_wait_steps(duels),
        delay_steps=_only({duel.delay_steps for duel in duels}, "schedulers, with and without overlap"),
        seen=_seen(duels),
        sources=tuple(result.name for result in results),
    )
    return FitReport(
        saved, errors, others[0][1] if others else {}, tuple(_configurations(out)), tuple(skipped)
    )


def _only(values: set[Any], what: str) -> Any:
    if len(values) != 1:
        raise BenchError(f"the sweeps are of {len(values)} {what}: fit those of one at a time")
    return next(iter(values))


def _duels(cells: Sequence[CellResult], shape: ModelShape) -> tuple[list[DuelCell], list[str]]:
    duels, skipped = [], []
    for cell in cells:
        try:
            duels.append(duel_cell(cell, shape.num_layers))
        except (BenchError, ConfigError) as error:
            skipped.append(f"{cell.record_path.name}: {error}")
    if not duels:
        raise BenchError(f"no cell can be used: {skipped[0]}")
    return duels, skipped


def _fitted(
    observations: Sequence[Observation], law: Law
) -> tuple[StepCosts, dict[str, Errors], list[Residual]]:
    """Costs, errors by name, and what fits to the other arms say of each observation."""
    refit = partial(fit, law=law)
    costs = refit(observations)
    errors = {"training": Errors.of(residuals_of(observations, costs))}
    by_arm = held_out(observations, HOLD_OUT["arm"], refit)
    errors["arm"] = Errors.of(by_arm)
    if len({HOLD_OUT["decode rows"](each) for each in observations}) > 1:
        errors["decode rows"] = Errors.of(held_out(observations, HOLD_OUT["decode rows"], refit))
    return costs, errors, by_arm


def _seen(duels: Sequence[DuelCell]) -> Seen:
    rows = [duel.times.decode_rows for duel in duels]
    tokens = [duel.prompt_tokens for duel in duels]
    return Seen((min(rows), max(rows)), (min(tokens), max(tokens)))


def _wait_steps(duels: Sequence[DuelCell]) -> float:
    """0.5 where no prompt tells."""
    seen = [duel.times.times for duel in duels]
    known = [each.wait_s / each.decode_s for each in seen if each.wait_s is not None and each.decode_s]
    return median(known) if known else 0.5


def _configurations(residuals: Sequence[Residual]) -> Iterable[Configuration]:
    found: dict[tuple[str, int, int], list[Residual]] = {}
    for each in residuals:
        if each.observation.what != "decode":
            key = (each.observation.arm, each.observation.decode_rows, each.observation.prompt_tokens)
            found.setdefault(key, []).append(each)
    for key, steps in found.items():
        measured = [each.observation.value_s for each in steps]
        predicted = [each.predicted_s for each in steps]
        yield Configuration(*key, sum(measured), sum(predicted), max(measured), max(predicted))


def write_fit(report: FitReport, path: Path) -> None:
    """Write what `read_fit` needs, and the errors for whoever reads the file."""
    document = report.fit.to_json() | {
        "errors": {name: asdict(each) for name, each in report.errors.items()},
        "other_errors": {name: asdict(each) for name, each in report.other_errors.items()},
        "configurations": [asdict(each) for each in report.configurations],
        "skipped": report.skipped,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
