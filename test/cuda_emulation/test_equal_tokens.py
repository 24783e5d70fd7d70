"""On SGLang's CUDA branches tokens beside a cohort equal tokens alone, on the memory of the captures."""

from __future__ import annotations

import pytest
from triton_launches import KERNELS

from equal_cases import (
    CASES,
    COUNTER,
    NUM_GRAPH_SIZES,
    granularity_at_start,
    group_rows,
    num_layers,
    run,
    runs,
)
from scenario_requests import LONG, SHORT
from workers import Workers

NUM_WHOLE = 2  # graphs of each size beside the runs: tokens to rows, rows to logits
# Counted by hand: layers one by one are 8, 4 and 2 runs, in twos 4 and 2, in fours 2.
NUM_RUNS = {(8, None): 14, (7, 2): 6, (8, 2): 6, (8, 4): 2}
COUNTED = [name for name, (_, _, flags, _) in CASES.items() if COUNTER.items() <= flags.items()]


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_equal_on_captured_memory(workers: Workers, name: str) -> None:
    alone = run(workers, name)["alone"]
    for execution, granularity, way in runs(workers, name):
        assert way["tokens"] == alone, (execution, granularity)
        assert way["mismatches"] == [], (execution, granularity)
        assert set(way["layered_steps"]) == {execution}
        assert way["num_replays"] > 0


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_equal_where_a_short_prompt_overtakes(workers: Workers, name: str) -> None:
    seen = run(workers, name)["overtaken"]
    assert 1 in seen["order"][seen["order"].index(2) :]
    assert all(seen["equal"])
    assert seen["mismatches"] == []
    # Of SGLang's own decode graphs; see test_stream_order.
    known = "update_trtllm_mha_graph_metadata"
    assert [violation for violation in seen["violations"] if known not in violation] == []


@pytest.mark.parametrize("name", CASES)
def test_every_graph_is_captured_once(workers: Workers, name: str) -> None:
    """SGLang's own, and ours: of each size one a run of segments, and two more; before "ready".

    A group's layers have two each, one before attention and one behind it.
    """
    depth = num_layers(name)
    ours = NUM_RUNS[depth, granularity_at_start(name)] + NUM_WHOLE
    started = run(workers, name)
    assert started["num_captures"] == NUM_GRAPH_SIZES * (1 + ours) + 2 * depth * len(group_rows(name))
    assert started["num_captures_when_ready"] == started["num_captures"]
    for _, granularity, way in runs(workers, name):
        num_graphs = 0 if granularity is None else NUM_RUNS[depth, granularity] + NUM_WHOLE
        assert way["num_captures"] == NUM_GRAPH_SIZES * num_graphs


@pytest.mark.parametrize("name", CASES)
def test_groups_run_by_graphs_where_they_are_asked_for(workers: Workers, name: str) -> None:
    """Every layer once, of the one cohort that runs beside others; where prompt rows run apart, eagerly."""
    expected = {"fused": num_layers(name) if group_rows(name) else 0}
    for execution, granularity, way in runs(workers, name):
        assert way["num_group_replays"] == expected.get(execution, 0), (execution, granularity)


@pytest.mark.parametrize("name", CASES)
def test_no_triton_kernel_is_launched_that_is_not_compiled_without_a_device(
    workers: Workers, name: str
) -> None:
    for execution, granularity, way in runs(workers, name):
        assert set(way["triton_kernels"]) <= KERNELS.keys(), (execution, granularity)


@pytest.mark.parametrize("name", COUNTED)
def test_every_row_is_counted_once_in_every_layer(workers: Workers, name: str) -> None:
    """In graphs, beside them and eagerly; padding rows of graphs are nobody's."""
    num_prompt_rows = sum(len(tokens) for tokens, _ in SHORT + LONG)
    for execution, granularity, way in runs(workers, name):
        prompt_ids, decode_ids = way["expert_ids"]
        [top_k] = {ids / num_prompt_rows for ids in prompt_ids}
        assert top_k == 4, (execution, granularity)
        [decoded] = set(decode_ids)
        assert decoded >= top_k * sum(num_tokens - 1 for _, num_tokens in SHORT + LONG)
