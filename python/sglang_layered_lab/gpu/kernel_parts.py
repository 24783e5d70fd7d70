"""Where the time of steps goes, read off a trace of torch's profiler. Pure.

SGLang marks every step in the trace; a step lasts until the next one begins. On a GPU its kernels are summed
up, on a CPU the operators that no other operator called.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_layered.errors import LabError

MARK, DECODE_MARK = "step[", "step[DECODE"
MARK_KINDS = {"cuda": "gpu_user_annotation", "cpu": "user_annotation"}
KERNEL_KINDS = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
OPERATOR_KINDS = frozenset({"cpu_op"})
OTHER = "other"
Event = Mapping[str, Any]  # of a Chrome trace
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


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of all steps of a kind together, by part; `busy_s` of `window_s` something ran.

    `batch_size` is the number of requests that SGLang counted in the first of them, 0 without a step.
    """

    num_steps: int
    batch_size: int
    parts_s: Mapping[str, float]
    window_s: float
    busy_s: float


def part_of(name: str) -> str:
    """The part that a kernel or operator belongs to, by its name."""
    return next((part for part, pattern in PARTS if pattern.search(name)), OTHER)


def step_times(events: Sequence[Event], device: str) -> tuple[StepTimes, StepTimes]:
    """Sum up decode steps of the most usual number of rows, and steps with prompt rows.

    The first step bears the profiler's start and the last one has no end: both are left out.

    Args:
        events: a trace's `traceEvents`; times in microseconds.
        device: "cuda" counts kernels, "cpu" outermost operators.

    Raises:
        LabError: SGLang marked no three steps.
    """
    spans = [each for each in events if each.get("ph") == "X"]
    marks = _marks(spans, MARK_KINDS[device])
    if len(marks) < 3:
        raise LabError(f"the trace has {len(marks)} events {MARK}...] of kind {MARK_KINDS[device]}")
    kinds = KERNEL_KINDS if device == "cuda" else OPERATOR_KINDS
    work = [each for each in spans if each.get("cat") in kinds]
    found = list(work if device == "cuda" else _outermost(work))
    starts = [each["ts"] for each in marks]
    steps: list[list[Event]] = [[] for _ in marks]
    for each in found:
        if each["ts"] >= starts[0]:
            steps[bisect_right(starts, each["ts"]) - 1].append(each)
    names = [each["name"] for each in marks]
    whole = range(1, len(marks) - 1)
    decodes = Counter(names[place] for place in whole if names[place].startswith(DECODE_MARK))
    usual = decodes.most_common(1)[0][0] if decodes else None
    decode = [place for place in whole if names[place] == usual]
    prompt = [place for place in whole if not names[place].startswith(DECODE_MARK)]
    return _sum(decode, names, steps, starts), _sum(prompt, names, steps, starts)


def _marks(spans: Iterable[Event], kind: str) -> list[Event]:
    """One a step: a range on a second stream lies in that of the first."""
    mine = [each for each in spans if each.get("cat") == kind and each["name"].startswith(MARK)]
    found: list[Event] = []
    for each in sorted(mine, key=lambda each: each["ts"]):
        if not found or each["ts"] >= found[-1]["ts"] + found[-1]["dur"]:
            found.append(each)
    return found


def _sum(
    places: Sequence[int], names: Sequence[str], steps: Sequence[Sequence[Event]], starts: Sequence[float]
) -> StepTimes:
    parts_s: dict[str, float] = {}
    window = busy = 0.0
    for place in places:
        window += starts[place + 1] - starts[place]
        busy += _covered(sorted((each["ts"], each["ts"] + each["dur"]) for each in steps[place]))
        for each in steps[place]:
            part = part_of(each["name"])
            parts_s[part] = parts_s.get(part, 0.0) + each["dur"] / 1e6
    size = re.search(r"bs=(\d+)", names[places[0]]) if places else None
    return StepTimes(len(places), int(size[1]) if size else 0, parts_s, window / 1e6, busy / 1e6)


def _outermost(events: Iterable[Event]) -> Iterator[Event]:
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
