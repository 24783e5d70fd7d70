"""Many replicas in simulated time: one is the replay's server, none loses a request, all is bounded."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auto_cases import LAYERS, NUM_LAYERS, SIZES, START, linear
from cluster_cases import KnownSteps, cell_of, drawn, jobs_at, served
from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.auto.step_times import StepTimes
from sglang_layered.core import bounds
from sglang_layered.core.capability import Capability
from sglang_layered.core.pacing import StepLoad
from sglang_layered.core.policy import FixedCountPolicy, GroupPolicy, TokenTargetPolicy
from sglang_layered.core.questions import Snapshot
from sglang_layered_lab.cluster.routers import ROUTERS
from sglang_layered_lab.cluster.spec import (
    ClusterSpec,
)
from sglang_layered_lab.traces.replay import Replay, Request
from sglang_layered_lab.traces.run_model import RunModel


class KnownModel(RunModel):
    """For the replay: the same machine."""

    def step_s(self, load: StepLoad) -> float:
        return linear(load)


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize(
    "policy",
    [FixedCountPolicy(4), TokenTargetPolicy(512), AutoPolicy(0.03), FixedCountPolicy(1)],
    ids=["fixed", "token-target", "auto", "whole"],
)
def test_one_replica_is_the_server_of_the_replay(policy: GroupPolicy, delay: int) -> None:
    rows = drawn(seed=5)
    steps, cell = KnownSteps(delay_steps=delay), cell_of(cohort_tokens=4096)
    policies = [deepcopy(policy) for _ in range(2)]
    for each in policies:
        if isinstance(each, AutoPolicy):
            each.begin(SIZES, LAYERS, START)
    jobs = served(jobs_at(rows), cell, policies[0], steps).jobs
    model = KnownModel(SIZES, StepTimes(), steps.between_s, delay)
    limit_s = policy.tbt_limit_s if isinstance(policy, AutoPolicy) else None
    asked = [Request(str(index), row[0], row[1], 0, row[2]) for index, row in enumerate(rows)]
    truth = Replay(model, policies[1], 4096, limit_s).run(asked)
    for job in jobs:
        tokens_s = truth[str(job.index)].tokens_s
        assert (job.first_s, job.last_s) == pytest.approx((tokens_s[0], tokens_s[-1]), abs=1e-9)
        assert job.num_heard == len(tokens_s) == job.output_tokens


@dataclass
class AnyAnswer:
    """Answers what may be answered, by lot."""

    can: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.ORDERS_QUEUE,
            Capability.HOLDS_PROMPTS,
            Capability.PREEMPTS_COHORTS,
            Capability.CHOOSES_DECODES,
        }
    )
    dice: random.Random

    def plan(self, view: Any) -> Any:
        return TokenTargetPolicy(self.dice.choice((64, 512, 4096))).plan(view)

    def some(self, number: int) -> list[int]:
        return self.dice.sample(range(number), self.dice.randint(0, number))

    def order(self, view: Snapshot) -> list[int]:
        return self.some(len(view.waiting))

    def hold(self, view: Snapshot) -> float:
        return self.dice.choice((0.0, 0.01, 1e9))

    def preempt(self, view: Snapshot) -> list[int] | None:
        assert view.flying and view.waiting
        return self.dice.choice((None, self.some(len(view.waiting))))

    def decode_rows(self, view: Snapshot) -> list[int] | None:
        assert view.flying and len(view.running)
        return self.some(len(view.running))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([*ROUTERS]), st.integers(1, 3), st.integers(0, 2))
def test_whatever_a_policy_answers_every_request_is_served_and_nothing_is_computed_twice(
    seed: int, router: Any, replicas: int, max_parked: int
) -> None:
    steps = KnownSteps()
    cell = cell_of(ClusterSpec(replicas, router), cohort_tokens=2048, max_parked=max_parked, max_running=16)
    rows = drawn(seed, 30, 20.0)
    outcome = served(jobs_at(rows), cell, AnyAnswer(random.Random(seed)), steps)
    assert all(job.num_heard == job.output_tokens and job.left == 0 for job in outcome.jobs)
    rows_by_layers = sum(load.prompt_rows * load.prompt_layers for load in steps.loads)
    assert rows_by_layers == pytest.approx(NUM_LAYERS * sum(row[1] for row in rows))
    assert sum(load.decode_rows for load in steps.loads) == sum(row[2] - 1 for row in rows)
    assert max(load.decode_rows for load in steps.loads) <= 16
    longest_s = max(map(linear, steps.loads)) + steps.between_s
    for job in outcome.jobs:
        assert job.worst_gap_s <= (bounds.MOST_SAT_OUT + 2) * longest_s + bounds.MOST_HELD_S


def test_with_the_overlap_scheduler_a_request_decodes_once_more_than_it_has_tokens() -> None:
    rows = [(0.0, 100, 5), (0.001, 100, 3), (0.5, 50, 1)]
    steps = KnownSteps(idle_rows=1)
    jobs = served(jobs_at(rows), cell_of(), None, steps).jobs
    assert [job.num_heard for job in jobs] == [5, 3, 1]
    assert sum(load.decode_rows for load in steps.loads) == 4 + 2 + 0 + 3


def test_a_long_prompt_goes_on_between_short_ones_that_never_end() -> None:
    short = [(0.5 + 0.004 * index, 40, 2) for index in range(400)]
    steps, cell = KnownSteps(), cell_of(max_parked=1, group_tokens=128)
    jobs = served(jobs_at([(0.0, 100, 200), (0.49, 6000, 3), *short]), cell, None, steps).jobs
    num_groups = min(NUM_LAYERS, 6000 // 128)
    assert jobs[1].first_s - 0.49 < 2 * (num_groups + 2) * 0.02


def test_overtaking_helps_the_short_ones() -> None:
    rows = [(0.0, 100, 200), (0.1, 6000, 3), *[(0.11 + 0.02 * index, 40, 2) for index in range(4)]]
    times = [served(jobs_at(rows), cell_of(max_parked=most, num_groups=8)).jobs[2].first_s for most in (0, 1)]
    assert times[1] < times[0] / 1.5


def test_the_least_loaded_gets_the_next_request() -> None:
    rows = [(0.0, 6000, 2), (0.001, 6000, 2), (0.002, 100, 2), (0.003, 6000, 2), (0.004, 100, 2)]
    by_load = served(jobs_at(rows), cell_of(ClusterSpec(3, "least-loaded"))).jobs
    in_turn = served(jobs_at(rows), cell_of(ClusterSpec(3, "round-robin"))).jobs
    assert by_load[4].first_s < in_turn[4].first_s


def test_a_router_that_keeps_requests_gives_them_to_who_has_no_prompt() -> None:
    rows = [(0.0, 8000, 2), *[(0.001 + 0.0001 * index, 200, 2) for index in range(12)]]
    kept = served(jobs_at(rows), cell_of(ClusterSpec(2, "staggered"))).jobs
    assert max(job.first_s for job in kept[1:]) < kept[0].first_s
