"""Metrics of a point, computed from its raw times. In seconds; medians over the repetitions.

ttft_s       first token of the prompt after it was sent, at the client
worst_gap_s  longest time between two tokens of a running stream that overlaps [sent, first token]
p99_gap_s    99th percentile of those times
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

import numpy as np

from sglang_layered_lab.cost.coverage import COVERAGES
from sglang_layered_lab.cost.devices import H200
from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.predict import Prediction, predict_prompt
from sglang_layered_lab.cost.shape import MODELS, QWEN3_30B_A3B, ModelShape, named
from sglang_layered_lab.cost.ways import Beside, Way
from sglang_layered_lab.gpu.profiles import Profile
from sglang_layered_lab.gpu.records import Row


@dataclass(frozen=True, slots=True)
class Figures:
    """None stands for what this point cannot tell."""

    ttft_s: float
    worst_gap_s: float | None
    p99_gap_s: float | None
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
        worst_gap_s=_median([max(_gaps(run), default=None) for run in runs]),
        p99_gap_s=_median([float(np.quantile(gaps, 0.99)) for run in runs if (gaps := _gaps(run))]),
        steady_gap_s=_median([gap for run in runs for gap in _steady_gaps(run)]),
        step_sum_s=_median([sum(each) for each in steps]),
        worst_step_s=_median([max(each) for each in steps]),
        decode_s=_median([time_s for run in runs for time_s in run.get("decode_steps_s", [])]),
        num_steps=len(steps[0]) if steps else None,
    )


def shape_of(profile: Profile) -> ModelShape | None:
    """Sizes for the roofline; None without a GPU, whose rates are those that are known."""
    if profile.device != "cuda" or profile.model_path is None:
        return None
    return MODELS.get(profile.model_path.name) or named(str(profile.model_path))


def step_model(shape: ModelShape, coverage: str) -> StepModel:
    """The roofline of one H200."""
    return StepModel(shape, COVERAGES[coverage], H200.costs())


def beside(row: Row) -> Beside:
    """The running streams: each sees its prompt and what it has generated."""
    generated = [run.get("generated_tokens", 0) for run in row["repetitions"]]
    return Beside(row["decode_rows"], row["context_tokens"] + int(statistics.median(generated)))


def bound_of(row: Row, coverage: str, shape: ModelShape = QWEN3_30B_A3B) -> Prediction | None:
    """The roofline of a row on one H200, bf16; None for a way that the cost model does not know."""
    way = Way("whole")  # prompts first and alone: the running streams wait
    if row["arm"] in ("default", "pdmux"):
        return None
    if row["arm"].startswith("mixed"):
        way = Way("mixed", int(row["arm"].removeprefix("mixed")))
    elif row["is_layered"]:
        way = Way("layered", row["repetitions"][0].get("num_groups", 1))
    return predict_prompt(step_model(shape, coverage), way, row["prompt_tokens"], beside(row))


def _gaps(run: dict[str, Any]) -> list[float]:
    first = run["prompt_s"][0]
    return [
        after - before
        for times in run["streams_s"]
        for before, after in pairwise(times)
        if after >= 0 and before <= first
    ]


def _steady_gaps(run: dict[str, Any]) -> list[float]:
    return [after - before for times in run["streams_s"] for before, after in pairwise(times) if after < 0]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
