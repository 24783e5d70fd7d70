"""Metrics of a point, computed from its raw times. In seconds; medians over the repetitions.

ttft_s       first token of the prompt after it was sent, at the client
worst_gap_s  longest time between two tokens of a running stream that overlaps [sent, first token]
steady_gap_s median time between two tokens of a running stream before the prompt was sent
steps_s      forwards of the prompt, on the device: their sum, and the longest
decode_s     median forward of a step without prompt rows, on the device
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sglang_layered.cost.coverage import COVERAGES
from sglang_layered.cost.devices import H200
from sglang_layered.cost.model import StepModel
from sglang_layered.cost.predict import Prediction, predict_prompt
from sglang_layered.cost.shape import QWEN3_30B_A3B
from sglang_layered.cost.ways import Beside, Way
from sglang_layered.gpu.records import Row


@dataclass(frozen=True, slots=True)
class Figures:
    """None stands for what this point cannot tell."""

    ttft_s: float
    worst_gap_s: float | None
    steady_gap_s: float | None
    step_sum_s: float | None
    worst_step_s: float | None
    decode_s: float | None
    num_steps: int | None


def figures(row: Row) -> Figures:
    """Metrics of a row of the stages `step` and `serve`."""
    runs = row["repetitions"]
    steps = [run["steps_s"] for run in runs if run.get("steps_s")]
    return Figures(
        ttft_s=statistics.median(run["prompt_s"][0] for run in runs),
        worst_gap_s=_median([_worst_gap(run) for run in runs]),
        steady_gap_s=_median([gap for run in runs for gap in _steady_gaps(run)]),
        step_sum_s=_median([sum(each) for each in steps]),
        worst_step_s=_median([max(each) for each in steps]),
        decode_s=_median([time_s for run in runs for time_s in run.get("decode_steps_s", [])]),
        num_steps=len(steps[0]) if steps else None,
    )


def bound_of(row: Row, coverage: str) -> Prediction:
    """The roofline of a row: Qwen3-30B-A3B on one H200, bf16; streams see all their tokens so far."""
    generated = [run.get("generated_tokens", 0) for run in row["repetitions"]]
    context_tokens = row["context_tokens"] + int(statistics.median(generated))
    way = Way("whole")  # prompts first and alone: the running streams wait
    if row["arm"].startswith("mixed"):
        way = Way("mixed", int(row["arm"].removeprefix("mixed")))
    elif row["is_layered"]:
        way = Way("layered", row["repetitions"][0].get("num_groups", 1))
    model = StepModel(QWEN3_30B_A3B, COVERAGES[coverage], H200.costs())
    return predict_prompt(model, way, row["prompt_tokens"], Beside(row["decode_rows"], context_tokens))


def _worst_gap(run: dict[str, Any]) -> float | None:
    first = run["prompt_s"][0]
    gaps = [
        after - before
        for times in run["streams_s"]
        for before, after in pairwise(times)
        if after >= 0 and before <= first
    ]
    return max(gaps, default=None)


def _steady_gaps(run: dict[str, Any]) -> list[float]:
    return [after - before for times in run["streams_s"] for before, after in pairwise(times) if after < 0]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
