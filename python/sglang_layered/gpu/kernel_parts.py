"""Where the time of steps goes, read off a trace of torch's profiler. Pure.

On a GPU the kernels are summed up, on a CPU the operators that no other operator called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_layered.cost.costs import StepCosts
from sglang_layered.cost.step import StepWork

KERNEL_KINDS = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
OPERATOR_KINDS = frozenset({"cpu_op"})
OTHER = "other"
PARTS = tuple(
    (part, re.compile(pattern, re.IGNORECASE))
    for part, pattern in (
        ("communication", r"nccl|all_?reduce|all_?gather|reduce_?scatter|cross_device"),
        ("sampling", r"sampl|argmax|multinomial|gumbel|top_p"),
        ("routing", r"topk|moe_align|gating|count_and_sort"),
        ("experts", r"moe|expert|grouped_?gemm"),
        ("attention", r"fmha|flash_?fwd|attn|attention|paged|batch_?(prefill|decode)|merge_|sdpa"),
        ("norms, positions, activations", r"norm|rope|rotary|silu|swiglu|act_and_mul|gelu"),
        ("dense products", r"gemm|nvjet|cutlass|cublas|matmul|addmm|linear|\bmm\b|::mm|splitk"),
        ("memory", r"memcpy|memset|copy|kv_?cache|set_kv|index|gather|scatter|\bcat\b|::cat|fill|arange"),
    )
)
ROOF_PARTS = {"dense": "dense products", "head": "dense products"}  # others are called alike


@dataclass(frozen=True, slots=True)
class TraceTimes:
    """Seconds by part, of all events together; `window_s` from the first to the end, `busy_s` with any."""

    parts_s: Mapping[str, float]
    window_s: float
    busy_s: float


def part_of(name: str) -> str:
    """The part that a kernel or operator belongs to, by its name."""
    return next((part for part, pattern in PARTS if pattern.search(name)), OTHER)


def trace_times(events: Iterable[Mapping[str, Any]], device: str) -> TraceTimes:
    """Sum up a trace's `traceEvents`.

    Args:
        events: Chrome trace events; times in microseconds.
        device: "cuda" counts kernels, "cpu" outermost operators.
    """
    kinds = KERNEL_KINDS if device == "cuda" else OPERATOR_KINDS
    mine = [each for each in events if each.get("ph") == "X" and each.get("cat") in kinds]
    if device != "cuda":
        mine = list(_outermost(mine))
    parts_s: dict[str, float] = {}
    for each in mine:
        part = part_of(each["name"])
        parts_s[part] = parts_s.get(part, 0.0) + each["dur"] / 1e6
    spans = sorted((each["ts"], each["ts"] + each["dur"]) for each in mine)
    if not spans:
        return TraceTimes({}, 0.0, 0.0)
    window = max(end for _, end in spans) - spans[0][0]
    return TraceTimes(parts_s, window / 1e6, _covered(spans) / 1e6)


def roof_parts(works: Sequence[StepWork], costs: StepCosts) -> dict[str, float]:
    """The roofline's seconds by part, of an average one of these steps."""
    found: dict[str, float] = {}
    for work in works:
        for part in work.parts:
            computed_s = part.flop * costs.flop + part.attention_flop * costs.attention_flop
            name = ROOF_PARTS.get(part.kind, part.kind)
            time_s = max(part.num_bytes * costs.byte, computed_s)
            found[name] = found.get(name, 0.0) + time_s / len(works)
    return found


def _outermost(events: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Events that lie in no other one of their thread."""
    ends: dict[Any, float] = {}
    for each in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        thread = (each.get("pid"), each.get("tid"))
        if each["ts"] >= ends.get(thread, float("-inf")):
            ends[thread] = each["ts"] + each["dur"]
            yield each


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    total, until = 0.0, float("-inf")
    for start, end in spans:
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total
