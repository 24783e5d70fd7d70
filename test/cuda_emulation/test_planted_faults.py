"""The harness finds what it is there for: each fault, planted in a run that is right without it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tiny_models import sized_model

from workers import Workers

FLAGS = {
    "attention_backend": "fa3",
    "page_size": 1,
    "layered_graph_granularity": 2,
    "layered_graph_group_rows": [512],
}
ORDER_FAULTS = {
    "forward_does_not_wait_for_the_scheduler": r"req_to_token: read on forward .* after write on schedule",
    "scheduler_does_not_wait_for_the_forward": r"req_to_token: write on schedule .* after read on forward",
    "pool_is_said_to_be_read_too_early": r"req_to_token: write on schedule .* after read on forward",
    "side_does_not_wait_for_the_fork": r"req_to_token: read on side .* after write on schedule",
    "nobody_waits_for_the_side": r"prompt's logits #\d+: .* on forward .* after write on side",
    "an_input_is_freed_at_once": r"lent positions #\d+: its memory returns to schedule before the end of",
}


@pytest.fixture(scope="module")
def found(workers: Workers) -> dict[str, Any]:
    case = {"kind": "planted", "model": str(sized_model("qwen3_moe", 64)), "flags": FLAGS}
    result = workers.on("h100").ask(case)
    assert "error" not in result, result["error"] + "\n" + result["log"]
    return result


@pytest.mark.parametrize("name", ["none", "none, groups by graphs"])
def test_nothing_is_found_where_there_is_no_fault(found: dict[str, Any], name: str) -> None:
    clean = found[name]
    assert clean["tokens"] == found["alone"]
    assert clean["violations"] == [] and clean["mismatches"] == []
    assert clean["num_accesses"] > 0


def test_a_recorded_tensor_may_be_freed(found: dict[str, Any]) -> None:
    assert found["faults"]["an_input_is_recorded_and_freed"]["violations"] == []


@pytest.mark.parametrize("name", ORDER_FAULTS)
def test_a_missing_wait_is_found_by_the_order(found: dict[str, Any], name: str) -> None:
    """The tokens are right all the same: no run on the CPU would have shown it."""
    run = found["faults"][name]
    assert run["tokens"] == found["alone"]
    assert any(re.match(ORDER_FAULTS[name], violation) for violation in run["violations"]), run


@pytest.mark.parametrize("name", ["static_rows_move", "group_rows_move"])
def test_a_graph_whose_memory_moved_is_found(found: dict[str, Any], name: str) -> None:
    assert found["faults"][name]["mismatches"]


@pytest.mark.parametrize(
    "name",
    [
        "graphs_are_not_planned",
        "tokens_are_not_copied_in",
        "group_positions_are_not_copied_in",
        "group_attends_by_an_old_plan",
        "group_does_not_attend",
    ],
)
def test_a_buffer_of_an_earlier_step_is_found(found: dict[str, Any], name: str) -> None:
    run = found["faults"][name]
    assert run["tokens"] != found["alone"]


def test_a_plan_with_a_row_too_few_is_found(found: dict[str, Any]) -> None:
    assert "the plan has" in found["faults"]["plan_has_a_row_too_few"]["error"]


def test_parked_rows_are_freed_when_their_step_has_ended(found: dict[str, Any]) -> None:
    """Without Python's garbage collector: device memory must not wait for it."""
    assert found["num_parked_kept"] == 0
