"""What the streams share is ordered by waits and events, not by luck."""

from __future__ import annotations

from typing import Any

import pytest

from equal_cases import CASES, runs
from moved_kernels import IS_0_5_23
from workers import Workers

HOPPER = [name for name, (device, *_) in CASES.items() if device == "h100"]
BLACKWELL = [name for name, (device, *_) in CASES.items() if device == "b200"]


def violations(workers: Workers, name: str, *executions: str) -> list[str]:
    ways: list[dict[str, Any]] = [way for execution, _, way in runs(workers, name) if execution in executions]
    assert all(way["num_accesses"] > 0 for way in ways)
    return [violation for way in ways for violation in way["violations"]]


@pytest.mark.parametrize("name", HOPPER)
def test_fused_steps_are_ordered(workers: Workers, name: str) -> None:
    assert violations(workers, name, "fused") == []


@pytest.mark.parametrize("name", HOPPER)
def test_sequential_and_concurrent_steps_are_ordered(workers: Workers, name: str) -> None:
    assert violations(workers, name, "sequential", "concurrent") == []


@pytest.mark.parametrize("name", BLACKWELL)
def test_one_workspace_leaves_no_second_stream(workers: Workers, name: str) -> None:
    """Prompt and decode attention would write it at the same time."""
    assert {execution for execution, _, _ in runs(workers, name)} == {"fused", "sequential"}


@pytest.mark.xfail(
    not IS_0_5_23,
    strict=True,
    reason="SGLang 0.5.17: a decode graph of trtllm_mha reads req_to_token in the replay, after the event"
    " that says it was read; no step of ours is needed",
)
@pytest.mark.parametrize("name", BLACKWELL)
def test_stock_decode_steps_are_ordered(workers: Workers, name: str) -> None:
    found = violations(workers, name, "fused")
    assert [violation for violation in found if "update_trtllm_mha_graph_metadata" in violation] == []
