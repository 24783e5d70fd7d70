"""Steps that a record holds, as observations, and their held-out errors."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from statistics import median

from sglang_layered_lab.cost.costs import Law, StepCosts
from sglang_layered_lab.cost.coverage import uniform_coverage
from sglang_layered_lab.cost.fit import Errors, Observation, fit, held_out
from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.shape import ModelShape
from sglang_layered_lab.cost.step import Attention
from sglang_layered_lab.cost.ways import Beside, Way, prompt_steps

REPO = Path(__file__).resolve().parents[2]


def by_arm(observations: list[Observation], law: Law) -> Errors:
    return Errors.of(held_out(observations, lambda each: each.arm, partial(fit, law=law)))


def recorded_steps(attention: Attention) -> list[Observation]:
    """The recorded steps of a dense model on a CPU, medians of three."""
    record = json.loads((REPO / "results" / "models" / "2026-11-21-2cores-dense.json").read_text())
    sizes = record["recipe"]
    shape = ModelShape(
        *(sizes["num_layers"], sizes["hidden_size"], 1, 1, sizes["intermediate_size"]),
        *(sizes["num_heads"], sizes["num_kv_heads"], sizes["head_size"], sizes["vocab_size"]),
    )
    model = StepModel(shape, uniform_coverage, StepCosts("sum", 0.0, 0.0, 0.0), attention)
    runs: dict[tuple[str, int, int], list[list[float]]] = {}
    for row in record["rows"]:
        runs.setdefault((row["way"], row["prompt_tokens"], row["decode_rows"]), []).append(row["steps_s"])
    found = []
    for (name, prompt_tokens, decode_rows), repetitions in runs.items():
        kind, _, size = name.partition(" ")
        way = {"whole": Way("whole")}.get(kind) or Way("layered" if kind == "even" else "mixed", int(size))
        steps = prompt_steps(shape.num_layers, way, prompt_tokens, Beside(decode_rows, 70.0))
        times_s = [median(each) for each in zip(*repetitions, strict=True)]
        for index, (step, time_s) in enumerate(zip(steps, times_s, strict=True)):
            works = (model.work(step),)
            what = f"step {index} of {prompt_tokens}"
            found.append(
                Observation(name, decode_rows, prompt_tokens, what, time_s, works, weight=1 / len(steps))
            )
    return found
