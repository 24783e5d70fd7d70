"""A cohort's life as events, for tests of listeners."""

from __future__ import annotations

from typing import Any

from sglang_layered.core.events import (
    CohortAdmitted,
    CohortDropped,
    CohortFinished,
    Event,
    GroupDone,
    ModeChanged,
    StepDone,
)
from sglang_layered.core.plan import LayerGroup, LayerGroupPlan

FINISHED = CohortFinished(3, 1.5, ("a",))


def layered_step(number: int, index: int, num_groups: int = 2, **changes: Any) -> StepDone:
    group = LayerGroupPlan.even(8, num_groups).groups[index]
    times = {"time_s": number + 0.9, "start_s": float(number), "duration_s": 0.5}
    rows = {"num_decode_rows": 2, "num_prompt_rows": 7, "decode": {"x": 4, "y": 9}, "prompt": {"a": 7}}
    place = {"group": group, "group_index": index, "num_groups": num_groups}
    return StepDone(**{"step": number, "kind": "layered", **times, **rows, **place, **changes})


STORY: tuple[Event, ...] = (
    StepDone(1, 1.4000004, "decode", 1.1, 0.2999996, num_decode_rows=2, decode={"x": 3, "y": 8}),
    CohortAdmitted(1, 1.5, LayerGroupPlan.even(8, 2), {"a": 7}, {"a": 64}),
    layered_step(2, 0),
    GroupDone(2, 2.9, LayerGroup(0, 4), 0, 2, ("a",)),
    layered_step(3, 1),
    GroupDone(3, 3.9, LayerGroup(4, 8), 1, 2, ("a",)),
    CohortFinished(3, 3.9, ("a",)),
    CohortAdmitted(3, 4.0, LayerGroupPlan.even(8, 4), {"b": 9, "c": 1}, {"b": 0, "c": 0}),
    CohortDropped(3, 4.1, ("b", "c"), 0, "KV pool full"),
    ModeChanged(3, 4.2, "chunked", "operator"),
    StepDone(4, 5.5, "prefill", 5.0, 0.4, num_prompt_rows=10),
)
