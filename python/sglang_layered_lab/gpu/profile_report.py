"""The stage `profile` as a table: milliseconds a step by part, beside the roofline's. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.ways import Way, prompt_steps
from sglang_layered_lab.gpu.figures import beside
from sglang_layered_lab.gpu.kernel_parts import roof_parts
from sglang_layered_lab.gpu.records import Row

HEADINGS = ("arm", "step", "part", "ms a step", "share", "roofline ms", "over it")
LEGEND = """*step*: of decode alone, or the average one of a prompt's. Sums of kernels on the device; of two
at the same time both count. *idle*: no kernel ran. *roofline*: with the coverage of
the routers."""


def profile_rows(row: Row, model: StepModel | None) -> list[list[str]]:
    """Decode steps first, then the prompt's; the largest part comes first."""
    return [*_decode(row, model), *_prompt(row, model)]


def _decode(row: Row, model: StepModel | None) -> Iterator[list[str]]:
    roof = {}
    if model is not None:
        roof = roof_parts([model.work(beside(row).step())], model.costs)
    yield from _lines(row["arm"], f"decode, {row['decode_rows']} rows", row["decode"], roof)


def _prompt(row: Row, model: StepModel | None) -> Iterator[list[str]]:
    roof = {}
    if model is not None:
        way = Way("layered", row["num_steps"]) if row["is_layered"] else Way("mixed", _chunk(row))
        steps = prompt_steps(model.shape.num_layers, way, row["prompt_tokens"], beside(row))
        roof = roof_parts([model.work(step) for step in steps], model.costs)
    step = f"prompt of {row['prompt_tokens']}, one of {row['num_steps']}"
    yield from _lines(row["arm"], step, row["prompt"], roof)


def _lines(arm: str, step: str, seen: Mapping[str, Any], roof: Mapping[str, float]) -> Iterator[list[str]]:
    count = seen["num_steps"]
    parts = {name: total_s / count for name, total_s in seen["parts_s"].items()}
    total_s = sum(parts.values())
    for name, time_s in sorted(parts.items(), key=lambda each: -each[1]):
        share = f"{time_s / total_s:.0%}" if total_s else "-"
        yield [arm, step, name, _ms(time_s), share, *_beside(time_s, roof.get(name, 0.0))]
    yield [arm, step, "all", _ms(total_s), "100%", *_beside(total_s, sum(roof.values()))]
    yield [arm, step, "idle", _ms(max(seen["window_s"] - seen["busy_s"], 0.0) / count), "", "", ""]


def _beside(time_s: float, bound_s: float) -> list[str]:
    return [_ms(bound_s), f"{time_s / bound_s:.2f}"] if bound_s else ["", ""]


def _chunk(row: Row) -> int:
    return int(row["arm"].removeprefix("mixed"))


def _ms(time_s: float) -> str:
    return f"{1e3 * time_s:.3f}"
