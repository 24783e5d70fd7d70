"""How `--layered-execution auto` chooses, with a clock that the test sets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.core.choice import (
    APART,
    NUM_BETWEEN_TRIALS,
    NUM_TO_COMPARE,
    StepShape,
    StrategyChoice,
)

NAMES = ("fused", "sequential", "concurrent")
SHAPE = StepShape(16, 2048, 6)


def run(
    choice: StrategyChoice, durations: dict[str, float], num_steps: int, shape: StepShape = SHAPE
) -> list:
    chosen = []
    for _ in range(num_steps):
        name = choice.choose(shape)
        choice.observe(name, shape, durations[name])
        chosen.append(name)
    return chosen


def learn(choice: StrategyChoice, durations: dict[str, float], shape: StepShape = SHAPE) -> None:
    run(choice, durations, len(NAMES) * (NUM_TO_COMPARE + 1), shape)


def test_strategies_take_turns_until_each_is_known() -> None:
    turns = run(StrategyChoice(*NAMES), dict.fromkeys(NAMES, 1.0), len(NAMES) * (NUM_TO_COMPARE + 1))
    assert set(Counter(turns).values()) == {NUM_TO_COMPARE + 1}


@given(durations=st.permutations([0.010, 0.012, 0.020]))
def test_the_fastest_is_used(durations: list[float]) -> None:
    choice, known = StrategyChoice(*NAMES), dict(zip(NAMES, durations, strict=True))
    learn(choice, known)
    fastest = min(known, key=known.__getitem__)
    assert Counter(run(choice, known, NUM_BETWEEN_TRIALS))[fastest] >= NUM_BETWEEN_TRIALS - len(NAMES)


def test_a_first_step_that_compiles_is_not_counted() -> None:
    choice = StrategyChoice(*NAMES)
    run(choice, {"fused": 9.0, "sequential": 0.1, "concurrent": 0.1}, len(NAMES))
    run(choice, {"fused": 0.010, "sequential": 0.012, "concurrent": 0.012}, len(NAMES) * NUM_TO_COMPARE)
    assert choice.choose(SHAPE) == "fused"


def test_sizes_are_judged_apart() -> None:
    choice, small = StrategyChoice(*NAMES), StepShape(16, 100, 6)
    learn(choice, {"fused": 1.0, "sequential": 2.0, "concurrent": 2.0})
    learn(choice, {"fused": 2.0, "sequential": 1.0, "concurrent": 2.0}, small)
    assert (choice.choose(SHAPE), choice.choose(small)) == ("fused", "sequential")
    assert choice.choose(StepShape(31, 4095, 7)) == "fused", "the same powers of two"


def test_it_changes_at_run_time_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    choice = StrategyChoice(*NAMES)
    with caplog.at_level("INFO"):
        learn(choice, {"fused": 0.010, "sequential": 0.012, "concurrent": 0.012})
        slower = {"fused": 0.020, "sequential": 0.012, "concurrent": 0.013}
        run(choice, slower, 3 * (NUM_BETWEEN_TRIALS + len(NAMES)))
    assert Counter(run(choice, slower, NUM_BETWEEN_TRIALS)).most_common(1)[0][0] == "sequential"
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("Layered execution: fused from 16 decode rows, 2048 prompt rows and 4 layers on")
    assert "fused 20.00 ms, sequential 12.00 ms, concurrent 12.00 ms" in second


def test_noise_within_the_margin_changes_nothing() -> None:
    choice = StrategyChoice(*NAMES)
    learn(choice, {"fused": 0.01000, "sequential": 0.01005, "concurrent": 0.02})
    run(choice, {"fused": 0.01005, "sequential": 0.01000, "concurrent": 0.02}, 500)
    assert choice.choose(SHAPE) == "fused"


def test_of_one_strategy_there_is_no_choice() -> None:
    choice = StrategyChoice("sequential")
    assert choice.only == "sequential" and not choice.learns
    assert StrategyChoice(*NAMES).only is None and StrategyChoice(*NAMES).learns


def test_what_is_expected_is_what_is_chosen_but_for_trials_and_asking_changes_nothing() -> None:
    choice, known = StrategyChoice(*NAMES), {"fused": 0.02, "sequential": 0.01, "concurrent": 0.03}
    assert choice.expected(SHAPE) == "fused" and not choice._buckets
    learn(choice, known)
    chosen = []
    for _ in range(2 * (NUM_BETWEEN_TRIALS + len(NAMES))):
        assert choice.expected(SHAPE) == "sequential"
        chosen += run(choice, known, 1)
    assert 0 < sum(name != "sequential" for name in chosen) <= 2 * len(NAMES)


def test_prompt_and_decode_rows_run_apart_in_all_strategies_but_fused() -> None:
    assert [name in APART for name in (*NAMES, None)] == [False, True, True, False]
