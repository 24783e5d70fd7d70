"""Policy auto on machines whose step times are known: limits kept, monotone, the same on all ranks."""

from __future__ import annotations

import logging
import random
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auto_cases import (
    LAYERS,
    NUM_LAYERS,
    SIZES,
    START,
    Machine,
    StepCost,
    adversarial,
    linear,
    noisy,
    with_jumps,
)
from sglang_layered.auto.deadlines import FIRST_FACTOR
from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.auto.step_times import amounts
from sglang_layered.core.pacing import PaceView, QueueView, StepLoad
from sglang_layered.core.view import SchedulerView

WARM_UP = (600, 2000, 64, 4000, 1000)


def warmed(limit_s: float | None, cost: StepCost, decode_rows: int = 4) -> Machine:
    machine = Machine.with_limit(limit_s, cost, decode_rows)
    for tokens in WARM_UP:
        machine.decode(8)
        machine.prompt(tokens)
    machine.gaps_s.clear()
    machine.decisions.clear()
    return machine


@pytest.mark.parametrize("limit_s", [0.008, 0.012, 0.02, 0.05, 0.2])
@pytest.mark.parametrize("cost", [linear, with_jumps, noisy(1)], ids=["linear", "jumps", "noisy"])
def test_a_feasible_limit_is_kept_after_warm_up(limit_s: float, cost: StepCost) -> None:
    machine = warmed(limit_s, cost)
    for tokens in (512, 2048, 6000, 300, 5000):
        machine.prompt(tokens)
        machine.decode(4)
    late = sum(gap > limit_s for gap in machine.gaps_s)
    assert late <= 0.01 * len(machine.gaps_s)
    assert all(decision.fits for decision in machine.decisions)


def test_outliers_are_no_law() -> None:
    quiet, odd = warmed(0.02, linear), warmed(0.02, adversarial(3))
    for machine in (quiet, odd):
        for _ in range(20):
            machine.decode(8)
            machine.prompt(2048)
    load = StepLoad(4, 2000, (2048,), (0,), NUM_LAYERS / 4)
    expected, found = (machine.policy.times for machine in (quiet, odd))
    row = amounts(SIZES, load)
    assert np.dot(found.coefficients, row) == pytest.approx(np.dot(expected.coefficients, row), rel=0.2)


def test_no_prompt_takes_longer_than_the_best_fixed_number_of_groups_that_keeps_the_limit() -> None:
    limit_s = 0.02
    machine = warmed(limit_s, linear)
    for tokens in (512, 2048, 6000):
        fixed = []
        for groups in range(1, NUM_LAYERS + 1):
            layers = -(-NUM_LAYERS // groups)
            counts = [min(layers, NUM_LAYERS - start) for start in range(0, NUM_LAYERS, layers)]
            times = [linear(StepLoad(4, 2000, (tokens,), (0,), count)) for count in counts]
            if max(times) <= limit_s * 0.9:
                fixed.append(sum(times))
        assert machine.prompt(tokens) <= 1.05 * min(fixed)


def test_an_infeasible_limit_goes_one_layer_a_step_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    machine = warmed(0.003, linear)  # a decode step alone takes 4.4 ms
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        machine.policy._steps_since_warning = 10**6
        machine.prompt(2048)
    assert {decision.layers for decision in machine.decisions} == {1}
    assert not any(decision.fits for decision in machine.decisions)
    assert len(machine.decisions) == NUM_LAYERS
    assert caplog.text.count("cannot be kept") == 1


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 8000),
    decodes=st.integers(1, 256),
    done=st.integers(0, NUM_LAYERS - 1),
    dues=st.lists(st.floats(-0.1, 1.0), min_size=2, max_size=8),
)
def test_layers_grow_with_the_budget(rows: int, decodes: int, done: int, dues: list[float]) -> None:
    policy = AutoPolicy(0.05)
    policy.begin(SIZES, LAYERS, START)
    view = [PaceView(StepLoad(decodes, 500, (rows,), (0,)), done, due) for due in sorted(dues)]
    decisions = [policy.next_layers(each) for each in view]
    for less, more in pairwise(decisions):
        assert less.layers <= more.layers and less.fits <= more.fits
    assert all(1 <= decision.layers <= NUM_LAYERS - done for decision in decisions)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_same_calls_give_the_same_decisions(seed: int) -> None:
    dice = random.Random(seed)
    ranks = [AutoPolicy(0.02) for _ in range(3)]
    for each in ranks:
        each.begin(SIZES, LAYERS, START)
    for _ in range(40):
        load = StepLoad(dice.randint(0, 64), dice.randint(0, 10**5), (dice.randint(1, 4000),), (0,))
        due, took, gap = dice.uniform(0, 0.02), dice.uniform(1e-3, 0.1), dice.uniform(0, 0.05)
        queue = QueueView((dice.randint(1, 9000),), (0,), 3, 100, due, 4096)
        assert len({each.cohort_tokens(queue) for each in ranks}) == 1
        assert len({each.next_layers(PaceView(load, 3, due)) for each in ranks}) == 1
        assert len({each.observe(load, took) for each in ranks}) == 1
        for each in ranks:
            each.observe_gap(gap, was_planned=True)


def test_a_prompt_far_longer_than_any_seen_begins_with_half_the_room() -> None:
    machine = warmed(0.05, linear)
    longest = StepLoad(4, 2000, (16_000,), (0,), 1.0)
    assert machine.policy.times.is_guess(amounts(SIZES, longest))
    machine.prompt(16_000)
    first, second, *_ = machine.decisions
    assert 2 * first.layers <= second.layers + 1
    assert first.budget_s == pytest.approx(second.budget_s, rel=0.2)
    assert not machine.policy.times.is_guess(amounts(SIZES, longest))
    machine.decisions.clear()
    machine.prompt(16_000)
    assert machine.decisions[0].layers >= second.layers


def test_what_was_seen_is_no_guess_after_a_restart() -> None:
    learned = warmed(0.05, linear).policy.learned()
    policy = AutoPolicy(0.05)
    policy.begin(SIZES, LAYERS, replace(START, learned=learned))
    seen, unseen = (amounts(SIZES, StepLoad(4, 2000, (tokens,), (0,), 1.0)) for tokens in (4000, 16_000))
    assert not policy.times.is_guess(seen) and policy.times.is_guess(unseen)


def test_without_a_limit_the_longest_step_is_that_of_the_papers_rule() -> None:
    machine = warmed(None, linear)
    machine.decode(1)
    machine.gaps_s.clear()
    auto_s = machine.prompt(4096)
    rule = machine.policy.plan(SchedulerView(NUM_LAYERS, (4096,)))
    times = [linear(StepLoad(4, 2000, (4096,), (0,), group.num_layers)) for group in rule.groups]
    assert max(machine.gaps_s) <= 1.03 * max(times)
    assert auto_s <= 1.01 * sum(times)


def test_beside_nothing_a_prompt_may_be_as_long_as_the_server_allows() -> None:
    policy = AutoPolicy(0.01)
    policy.begin(SIZES, LAYERS, START)
    assert policy.cohort_tokens(QueueView((7000,), (0,), 0, 0, None, 4096)) == 4096


def test_a_prompt_too_long_for_one_layer_a_step_goes_in_smaller_cohorts() -> None:
    """One layer of 60,000 rows takes 50 ms; cut along the tokens the limit can be kept."""
    machine = warmed(0.02, linear)
    machine.prompt(60_000, max_tokens=60_000)
    assert max(machine.gaps_s) <= 0.02
    assert all(decision.fits for decision in machine.decisions)
    chosen = machine.decisions[0].chosen
    assert chosen is not None and chosen.cohort_tokens < 60_000
    assert machine.decisions[0].runner_up is not None


def test_a_doubled_step_cost_is_followed_within_20_steps_without_oscillation() -> None:
    factor = [1.0]
    machine = warmed(0.03, lambda load: factor[0] * linear(load))
    for _ in range(10):
        machine.prompt(4096)
    factor[0] = 2.0
    machine.gaps_s.clear()
    machine.decisions.clear()
    ttfts_s, begun = [], []
    while len(machine.decisions) < 200:
        begun.append(len(machine.decisions))
        ttfts_s.append(machine.prompt(4096))
    late = [index for index, gap in enumerate(machine.gaps_s) if gap > 0.03]
    assert late and not [index for index in late if index >= 20]
    settled = [ttft_s for ttft_s, first in zip(ttfts_s, begun, strict=True) if first >= 20]
    assert max(settled) <= 1.25 * min(settled)
    wrong = [
        abs(decision.predicted_s / gap - 1)
        for decision, gap in zip(machine.decisions, machine.gaps_s, strict=True)
    ]
    assert np.median(wrong[20:]) < 0.03 and max(wrong[20:]) < 0.4


def test_a_margin_widens_by_misses_and_narrows_in_quiet_stretches() -> None:
    policy = AutoPolicy(0.02)
    before = policy.margin.part
    policy.observe_gap(0.03, was_planned=False)  # a decode step was late: not our doing
    assert policy.margin.part == before
    policy.observe_gap(0.03, was_planned=True)
    wider = policy.margin.part
    assert wider > before
    for _ in range(64):
        policy.observe_gap(0.01, was_planned=True)
    assert before < policy.margin.part < wider


def test_a_restless_machine_gets_room_whatever_limit_was_in_force() -> None:
    """What was learned under one limit holds under another, and from steps that the policy did not choose."""
    steady, restless = warmed(0.02, linear), warmed(0.02, noisy(1, part=0.25))
    for machine in (steady, restless):
        machine.policy.tbt_limit_s = 0.05
        for _ in range(100):
            machine.run_step(StepLoad(4, 2000, (2048,), (0,), NUM_LAYERS), is_paced=False)
    load = StepLoad(4, 2000, (2048,), (0,))
    budgets_s = [each.policy.next_layers(PaceView(load, 0, 0.05)).budget_s for each in (steady, restless)]
    assert 0.93 * 0.05 < budgets_s[0] < 0.05
    assert budgets_s[1] < 0.9 * budgets_s[0]


def test_steps_of_which_nothing_is_known_are_no_surprise() -> None:
    policy = AutoPolicy(0.02)  # without a prior everything is predicted to take no time
    for _ in range(20):
        policy.observe(StepLoad(4, 2000, (512,), (0,), 1.0), 0.01)
    assert policy.surprise.factor == FIRST_FACTOR


def test_a_decision_takes_the_decodes_own_forward_into_account() -> None:
    """Apart, the prompt's layers read the experts again."""
    policy = AutoPolicy()
    policy.begin(SIZES, LAYERS, START)
    predicted = []
    for is_apart in (False, True):
        load = StepLoad(64, 64_000, (64,), (0,), is_apart=is_apart)
        decision = policy.next_layers(PaceView(load, 0, None))
        predicted.append(decision.predicted_s / decision.layers)
    assert predicted[1] > predicted[0]


def test_cohorts_are_compared_by_the_way_that_their_steps_will_run_in() -> None:
    policy = AutoPolicy(0.02)
    policy.begin(SIZES, LAYERS, START)
    steps_s = []
    for is_apart in (False, True):
        policy.cohort_tokens(QueueView((64,), (0,), 64, 64_000, 0.02, 4096, is_apart))
        chosen, _ = policy._chosen
        assert chosen is not None
        steps_s.append(chosen.step_s / chosen.layers)
    assert steps_s[1] > steps_s[0]


def test_learning_goes_on_where_it_ended() -> None:
    machine = warmed(0.02, linear)
    later = AutoPolicy(0.02)
    later.begin(SIZES, LAYERS, type(START)(START.rates, deepcopy(machine.policy.learned())))
    view = PaceView(StepLoad(4, 2000, (2048,), (0,)), 0, 0.02)
    later._margins, later.overhead = machine.policy._margins, machine.policy.overhead
    assert later.surprise.state() == machine.policy.surprise.state() != []
    assert later.next_layers(view).layers == machine.policy.next_layers(view).layers
    with pytest.raises(ValueError):
        AutoPolicy().begin(SIZES, LAYERS, type(START)(START.rates, {"gram": [1.0], "moment": [1.0]}))
