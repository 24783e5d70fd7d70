"""The timeline of pipeline ticks, against cases laid out by hand."""

from __future__ import annotations

import pytest

from pipeline_model import Costs, chunked, layered, timeline


def test_stages_work_side_by_side_and_a_turn_waits_for_its_last_one() -> None:
    line = timeline([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    # Tick 1 on stage 1 waits for tick 0 there; tick 2 on stage 0 for the tokens of tick 0.
    assert line.ends == ((1.0, 3.0), (2.0, 5.0), (4.0, 7.0))
    assert line.makespan_s == 7.0
    assert line.bubble == pytest.approx(1 - 9 / 14)


def test_a_lone_prompt_in_layers_takes_as_long_as_on_one_rank() -> None:
    costs = Costs(decode_s=0.1, prompt_s=4.0)
    line, ticks = layered(costs, num_stages=2, num_groups=4, num_prompts=1)
    assert len(ticks) == 8
    assert max(max(row) for row in line.costs) == pytest.approx(1.1)
    assert line.makespan_s == pytest.approx(8 * 0.1 + 8.0, rel=0.2)


def test_prompts_overlap_one_a_stage() -> None:
    costs = Costs(decode_s=0.0, prompt_s=4.0)
    line, _ = layered(costs, num_stages=2, num_groups=4, num_prompts=5)
    assert line.makespan_s == pytest.approx(4.0 * 6 + 1.0)
    assert line.bubble < 0.2


def test_chunks_make_running_requests_wait_for_all_prompts() -> None:
    costs = Costs(decode_s=0.1, prompt_s=2.0)
    stopped, decoding = chunked(costs, num_stages=2, num_chunks=2, num_prompts=5)
    flowing, every = layered(costs, num_stages=2, num_groups=4, num_prompts=5)
    assert stopped.worst_gap_s(decoding, 2) > 10
    heaviest_tick = max(max(row) for row in flowing.costs)
    assert 2 * heaviest_tick <= flowing.worst_gap_s(every, 2) <= 3 * heaviest_tick
