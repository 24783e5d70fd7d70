"""A fit to the duels of sweeps with the errors of what it was not shown, written as JSON and read back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from sglang_layered.errors import BenchError, ConfigError
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult
from sglang_layered_lab.cost.fit import Errors, FittedModel, fit, held_out, residuals_of
from sglang_layered_lab.cost.records import Duel, delay_steps_of, is_padded, read_duel, shape_of
from sglang_layered_lab.cost.ways import Waits
from sglang_layered_lab.models.recipe import ModelRecipe

FORMAT = 2  # 1 had a law of its own, and not the scheduler's model


@dataclass(frozen=True, slots=True)
class FitReport:
    """A fitted model, what its clients waited for, the loads it was shown, and how far it is off.

    `decode_rows` and `prompt_tokens` are the least and the most of them: a prediction outside is an
    extrapolation. `errors` are by `training` and by the field that was held out. `configurations` has a row
    for every arm beside so many decodes, measured and predicted by a fit that has not seen the arm:
    `prompt_s` is all steps of the prompt together, `worst_s` the longest time that a running request waits;
    for a prompt that makes them wait both are that pause, and without any the TTFT.
    """

    model: FittedModel
    waits: Waits
    decode_rows: tuple[int, int]
    prompt_tokens: tuple[int, int]
    sources: tuple[str, ...]
    errors: Mapping[str, Errors]
    configurations: tuple[Mapping[str, Any], ...]
    skipped: tuple[str, ...]

    def has_seen(self, decode_rows: int, prompt_tokens: int) -> bool:
        """True inside."""
        (few, many), (short, long) = self.decode_rows, self.prompt_tokens
        return few <= decode_rows <= many and short <= prompt_tokens <= long


def fit_sweeps(results: Sequence[SweepResult], shape: ModelRecipe | None = None) -> FitReport:
    """Fit step times to the duels of sweeps of one model on one machine; other cells are skipped.

    Args:
        results: sweeps.
        shape: the model's sizes, where records only name it.

    Raises:
        BenchError: no cell is a duel, or they are of several models or attention backends.
    """
    cells = [cell for result in results for cell in result.cells]
    shape = shape or _only([shape_of(cell.record) for cell in cells], "models")
    padded = _only([is_padded(cell.record) for cell in cells], "attention backends")
    delay = _only([delay_steps_of(cell.record) for cell in cells], "schedulers, with and without overlap")
    duels, skipped = _duels(cells, shape.num_layers)
    observations = [each for duel in duels for each in duel.observations]
    refit = partial(fit, shape=shape, is_padded=padded)
    model = refit(observations)
    by_arm = held_out(observations, "arm", refit)
    errors = {"training": Errors.of(residuals_of(observations, model)), "arm": Errors.of(by_arm)}
    if by_arm.decode_rows.nunique() > 1:
        errors["decode_rows"] = Errors.of(held_out(observations, "decode_rows", refit))
    before = [duel.before_steps for duel in duels if duel.before_steps is not None]
    return FitReport(
        model,
        Waits(model.request_s, median(before) if before else 0.5, delay),  # 0.5: at any moment of a step
        (int(by_arm.decode_rows.min()), int(by_arm.decode_rows.max())),
        (int(by_arm.prompt_tokens.min()), int(by_arm.prompt_tokens.max())),
        tuple(result.name for result in results),
        errors,
        tuple(_configurations(by_arm).to_dict("records")),
        tuple(skipped),
    )


def _only(values: Sequence[Any], what: str) -> Any:
    if any(value != values[0] for value in values):
        raise BenchError(f"the sweeps are of several {what}: fit those of one at a time")
    return values[0]


def _duels(cells: Sequence[CellResult], num_layers: int) -> tuple[list[Duel], list[str]]:
    duels, skipped = [], []
    for cell in cells:
        try:
            duels.append(read_duel(cell, num_layers))
        except (BenchError, ConfigError) as error:
            skipped.append(f"{cell.record_path.name}: {error}")
    if not duels:
        raise BenchError(f"no cell can be used: {skipped[0]}")
    return duels, skipped


def _configurations(residuals: pd.DataFrame) -> pd.DataFrame:
    steps = residuals[residuals.what != "decode"]
    return (
        steps.groupby(["arm", "decode_rows", "prompt_tokens"], sort=False)
        .agg(
            prompt_s=("value_s", "sum"),
            predicted_prompt_s=("predicted_s", "sum"),
            worst_s=("value_s", "max"),
            predicted_worst_s=("predicted_s", "max"),
        )
        .reset_index()
    )


def write_fit(report: FitReport, path: Path) -> None:
    """Write what `read_fit` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": FORMAT} | asdict(report), indent=1) + "\n")


def read_fit(path: Path) -> FitReport:
    """Read a fit.

    Raises:
        BenchError: it is no such file, or of another format.
    """
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise BenchError(f"{path}: format {values['format']}, not {FORMAT}; fit again")
        return TypeAdapter(FitReport).validate_python(values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BenchError):
            raise
        raise BenchError(f"{path}: no fit ({error!r}); make one with cost fit --out") from error
