"""The stage `profile` as a table: milliseconds a step by part, beside the roofline's. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sglang_layered.cost.shape import ModelShape
from sglang_layered.cost.ways import Way, prompt_steps
from sglang_layered.gpu.figures import beside, step_model
from sglang_layered.gpu.kernel_parts import roof_parts
from sglang_layered.gpu.records import Row

HEADINGS = ("arm", "step", "part", "ms a step", "share", "roofline ms", "over it")
LEGEND = """*step*: of decode alone, or the average one of a prompt's. Sums of kernels on the device; of two
at the same time both count. *idle*: in decode steps, no kernel ran. *roofline*: uniform routing, which
dummy weights come close to."""
COVERAGE = "uniform"


def profile_rows(row: Row, shape: ModelShape | None) -> list[list[str]]:
    """Decode steps first, then the prompt's; the largest part comes first."""
    return [*_decode(row, shape), *_prompt(row, shape)]


def prompt_parts(row: Row) -> dict[str, float]:
    """Seconds of an average step of the prompt: what the window held more than decode steps of their own."""
    both, decode = row["with_prompt"], row["decode"]
    others = (both["num_steps"] - row["num_steps"]) / decode["num_steps"]
    names = both["parts_s"].keys() | decode["parts_s"].keys()
    left = {
        name: both["parts_s"].get(name, 0.0) - others * decode["parts_s"].get(name, 0.0) for name in names
    }
    return {name: max(total_s, 0.0) / row["num_steps"] for name, total_s in left.items()}


def _decode(row: Row, shape: ModelShape | None) -> Iterator[list[str]]:
    seen = row["decode"]
    parts = {name: total_s / seen["num_steps"] for name, total_s in seen["parts_s"].items()}
    roof = {}
    if shape is not None:
        model = step_model(shape, COVERAGE)
        roof = roof_parts([model.work(beside(row).step())], model.costs)
    yield from _lines(row["arm"], f"decode, {row['decode_rows']} rows", parts, roof)
    idle_s = max(seen["window_s"] - seen["busy_s"], 0.0) / seen["num_steps"]
    yield [row["arm"], f"decode, {row['decode_rows']} rows", "idle", _ms(idle_s), "", "", ""]


def _prompt(row: Row, shape: ModelShape | None) -> Iterator[list[str]]:
    roof = {}
    if shape is not None:
        model = step_model(shape, COVERAGE)
        way = Way("layered", row["num_steps"]) if row["is_layered"] else Way("mixed", _chunk(row))
        steps = prompt_steps(shape.num_layers, way, row["prompt_tokens"], beside(row))
        roof = roof_parts([model.work(step) for step in steps], model.costs)
    step = f"prompt of {row['prompt_tokens']}, one of {row['num_steps']}"
    yield from _lines(row["arm"], step, prompt_parts(row), roof)


def _lines(arm: str, step: str, parts: Mapping[str, float], roof: Mapping[str, float]) -> Iterator[list[str]]:
    total_s = sum(parts.values())
    for name, time_s in sorted(parts.items(), key=lambda each: -each[1]):
        share = f"{time_s / total_s:.0%}" if total_s else "-"
        bound_s = roof.get(name)
        over = f"{time_s / bound_s:.2f}" if bound_s else ""
        yield [arm, step, name, _ms(time_s), share, _ms(bound_s) if bound_s else "", over]
    bound_s = sum(roof.values())
    over = f"{total_s / bound_s:.2f}" if bound_s else ""
    yield [arm, step, "all", _ms(total_s), "100%", _ms(bound_s) if bound_s else "", over]


def _chunk(row: Row) -> int:
    return int(row["arm"].removeprefix("mixed"))


def _ms(time_s: float) -> str:
    return f"{1e3 * time_s:.3f}"
