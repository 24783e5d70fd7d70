"""Steps that a record holds, as observations, and their held-out errors."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from statistics import median

from sglang_layered_lab.cost.fit import Errors, Observation, fit, held_out
from sglang_layered_lab.cost.ways import Beside, Way, prompt_steps
from sglang_layered_lab.models.recipe import ModelRecipe

REPO = Path(__file__).resolve().parents[2]
RECORD = json.loads((REPO / "results" / "models" / "2026-11-21-2cores-dense.json").read_text())
DENSE = ModelRecipe(**RECORD["recipe"])


def by_arm(observations: list[Observation], shape: ModelRecipe, is_padded: bool) -> Errors:
    refit = partial(fit, shape=shape, is_padded=is_padded)
    return Errors.of(held_out(observations, "arm", refit))


def recorded_steps(is_padded: bool) -> list[Observation]:
    """The recorded steps of a dense model on a CPU, medians of three."""
    runs: dict[tuple[str, int, int], list[list[float]]] = {}
    for row in RECORD["rows"]:
        runs.setdefault((row["way"], row["prompt_tokens"], row["decode_rows"]), []).append(row["steps_s"])
    found = []
    for (name, prompt_tokens, decode_rows), repetitions in runs.items():
        kind, _, size = name.partition(" ")
        way = {"whole": Way("whole")}.get(kind) or Way("layered" if kind == "even" else "mixed", int(size))
        steps = prompt_steps(DENSE.num_layers, way, prompt_tokens, Beside(decode_rows, 70.0), is_padded)
        times_s = [median(each) for each in zip(*repetitions, strict=True)]
        for index, (step, time_s) in enumerate(zip(steps, times_s, strict=True)):
            what = f"step {index} of {prompt_tokens}"
            found.append(Observation(name, decode_rows, prompt_tokens, what, time_s, (step,)))
    return found
