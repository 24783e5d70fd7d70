"""Bytes, coverage and shares from counts, against sets of experts drawn at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.metrics.traffic import ExpertShape, ForwardCounts, phase_loads, shares

EXPERTS = 12
Call = tuple[frozenset[int], frozenset[int]]  # experts of a call's prompt rows and of its decode rows
sets = st.frozensets(st.integers(0, EXPERTS - 1), min_size=1)
calls = st.one_of(
    st.tuples(sets, st.just(frozenset())), st.tuples(st.just(frozenset()), sets), st.tuples(sets, sets)
)


def counts_of(layers: list[Call], num_prompt_rows: int, num_decode_rows: int) -> ForwardCounts:
    columns = [
        [1, bool(prompt), bool(decode), len(prompt), len(decode), len(prompt | decode)]
        for prompt, decode in layers
    ]
    return ForwardCounts(num_prompt_rows, num_decode_rows, *np.array(columns, dtype=np.int64).T)


def shape_of(sizes: list[int]) -> ExpertShape:
    ones = np.ones(len(sizes), dtype=np.int64)
    return ExpertShape(tuple(range(len(sizes))), np.array(sizes, dtype=np.int64), EXPERTS * ones, 2 * ones)


def phase_of(call: Call) -> str:
    prompt, decode = call
    return "hybrid" if prompt and decode else "prompt" if prompt else "decode"


@given(st.lists(st.tuples(calls, st.integers(1, 1000)), min_size=1, max_size=8), st.integers(1, 50))
def test_loads_are_the_sets_sizes(layers: list[tuple[Call, int]], num_rows: int) -> None:
    drawn, sizes = [call for call, _ in layers], [size for _, size in layers]
    loads = phase_loads(counts_of(drawn, num_rows, 3), shape_of(sizes))
    rows = {"prompt": num_rows, "decode": 3, "hybrid": num_rows + 3}
    assert set(loads) == {phase_of(call) for call in drawn}
    for phase, load in loads.items():
        mine = [(call[0] | call[1], size) for call, size in layers if phase_of(call) == phase]
        assert load.num_bytes == sum(len(active) * size for active, size in mine)
        assert load.coverage == pytest.approx(np.mean([len(active) / EXPERTS for active, _ in mine]))
        per_expert = [rows[phase] * 2 / len(active) for active, _ in mine]
        assert load.tokens_per_expert == pytest.approx(np.mean(per_expert))


@given(st.lists(st.tuples(calls, st.integers(1, 1000)), min_size=1, max_size=8))
def test_shares_add_up_and_an_expert_of_one_side_is_that_sides(layers: list[tuple[Call, int]]) -> None:
    counts, shape = counts_of([call for call, _ in layers], 9, 3), shape_of([size for _, size in layers])
    parts = shares(counts, shape)
    total = sum(load.num_bytes for load in phase_loads(counts, shape).values())
    assert parts.prompt_bytes + parts.decode_bytes == pytest.approx(total)
    if all(not decode for (_, decode), _ in layers):
        assert parts.decode_bytes == 0


def test_two_calls_of_one_layer_are_not_hybrid() -> None:
    one = np.ones(1, dtype=np.int64)
    counts = ForwardCounts(5, 2, 2 * one, one, one, 4 * one, 3 * one, 7 * one)
    loads = phase_loads(counts, shape_of([10]))
    assert {phase: load.num_bytes for phase, load in loads.items()} == {"prompt": 40, "decode": 30}
