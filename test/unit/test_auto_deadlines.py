"""Margins, overheads, and the order of prompts: nobody starves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.auto.deadlines import (
    FEW_SURPRISES,
    FIRST_FACTOR,
    LEAST_MARGIN,
    MOST_FACTOR,
    MOST_MARGIN,
    NUM_SURPRISES,
    ONE_IN,
    PATIENCE,
    Margin,
    Overhead,
    Surprise,
    WaitingPrompt,
    order_by_slack,
)

LIMIT_S = 2.0
PROMPTS = st.lists(
    st.builds(WaitingPrompt, arrived_s=st.floats(0, 100), predicted_s=st.floats(0, 5)),
    min_size=1,
    max_size=12,
)


def test_the_margin_stays_between_its_ends() -> None:
    margin = Margin()
    for _ in range(50):
        margin.missed(0.1)
    assert margin.part == MOST_MARGIN
    for _ in range(5000):
        margin.kept()
    assert margin.part == LEAST_MARGIN


def test_the_margin_widens_by_as_much_as_was_late_and_a_pause_is_no_law() -> None:
    margins = [Margin() for _ in range(3)]
    first = margins[0].part
    for margin, late in zip(margins, (0.001, 0.1, 30.0), strict=True):
        margin.missed(late)
    barely, late, paused = (margin.part - first for margin in margins)
    assert 0 < barely < late and late == pytest.approx(0.1)
    assert first + paused <= MOST_MARGIN


@given(st.lists(st.floats(0.3, 3.0), min_size=1, max_size=1000))
def test_all_but_one_in_so_many_of_the_latest_steps_stay_below_the_factor(ratios: list[float]) -> None:
    surprise = Surprise()
    for ratio in ratios:
        surprise.seen(ratio)
    counted = [ratio for ratio in ratios if ratio <= MOST_FACTOR]
    counted = counted[-min(max(len(counted) // 2, FEW_SURPRISES), NUM_SURPRISES) :]
    above = sum(ratio > surprise.factor for ratio in counted)
    if len(counted) < FEW_SURPRISES:
        assert surprise.factor == FIRST_FACTOR
    else:
        assert above <= len(counted) / ONE_IN
        assert surprise.factor == 1 or sum(ratio >= surprise.factor for ratio in counted) >= 1


@given(st.lists(st.floats(0.3, 3.0), max_size=1000))
def test_surprises_outlive_a_restart(ratios: list[float]) -> None:
    before = Surprise()
    for ratio in ratios:
        before.seen(ratio)
    after = Surprise.resumed(before.state())
    assert after.factor == before.factor and after.state() == before.state()
    assert Surprise.resumed([float("nan")]).state() == []


def test_a_steady_machine_needs_little_room_and_one_that_became_restless_more() -> None:
    surprise = Surprise()
    for _ in range(2 * NUM_SURPRISES):
        surprise.seen(1.01)
    assert surprise.factor == 1.01
    surprise.seen(10.0)  # a pause: no room would have been enough
    assert surprise.factor == 1.01
    for _ in range(NUM_SURPRISES // ONE_IN):
        surprise.seen(1.3)
    assert surprise.factor == 1.3
    for _ in range(NUM_SURPRISES):
        surprise.seen(0.99)
    assert surprise.factor == 1


def test_one_odd_pause_does_not_change_the_overhead() -> None:
    overhead = Overhead()
    for gap_s in (0.011, 0.012, 0.9, 0.011, 0.012):
        overhead.seen(gap_s, 0.01)
    assert 0.0009 < overhead.value_s < 0.0021


def test_a_step_whose_tokens_came_with_the_next_ones_has_no_overhead() -> None:
    overhead = Overhead()
    overhead.seen(0.001, 0.01)
    assert overhead.value_s == 0


def test_least_slack_goes_first_and_late_prompts_after_those_that_can_be_in_time() -> None:
    relaxed = WaitingPrompt(arrived_s=10.0, predicted_s=0.1)
    urgent = WaitingPrompt(arrived_s=10.5, predicted_s=1.4)
    late = WaitingPrompt(arrived_s=8.0, predicted_s=0.1)
    assert order_by_slack([relaxed, urgent, late], now_s=10.5, ttft_limit_s=LIMIT_S) == [1, 0, 2]


@given(PROMPTS, st.floats(0, 100))
def test_a_prompt_is_overtaken_only_by_those_that_came_soon_after_it(
    prompts: list[WaitingPrompt], since_s: float
) -> None:
    now_s = 100 + since_s
    order = order_by_slack(prompts, now_s, LIMIT_S)
    assert sorted(order) == list(range(len(prompts)))
    for place, index in enumerate(order):
        for earlier in order[:place]:
            came_after_s = prompts[earlier].arrived_s - prompts[index].arrived_s
            assert came_after_s < PATIENCE * LIMIT_S or now_s - prompts[index].arrived_s < PATIENCE * LIMIT_S


@given(PROMPTS, st.data())
def test_every_prompt_is_served_within_its_patience_and_the_queue_before_it(
    prompts: list[WaitingPrompt], data: st.DataObject
) -> None:
    """One by one, each in its predicted time, while others keep coming."""
    now_s = max(prompt.arrived_s for prompt in prompts)
    waiting, oldest = list(prompts), min(prompts, key=lambda prompt: prompt.arrived_s)
    bound_s = max(oldest.arrived_s + PATIENCE * LIMIT_S, now_s) + sum(p.predicted_s for p in prompts) + 5
    while oldest in waiting:
        assert now_s <= bound_s
        now_s += waiting.pop(order_by_slack(waiting, now_s, LIMIT_S)[0]).predicted_s + 0.01
        waiting.append(WaitingPrompt(now_s, data.draw(st.floats(0, 5))))
