"""Policies that come from papers: small views in, answers out, on a machine whose step times are known."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, TypeVar

import pytest

from auto_cases import LAYERS, NUM_LAYERS, SIZES, START, linear
from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.core.pacing import PaceView, QueueView, StepLoad
from sglang_layered.core.policy import LEARNED_POLICIES, find_policy
from sglang_layered.core.questions import Decode, Flying, Running, SloClass, Snapshot, Waiting
from sglang_layered.policies.fair_batching import FairBatchingPolicy
from sglang_layered.policies.flow_prefill import FlowPrefillPolicy
from sglang_layered.policies.near_late import TILE, NearLatePolicy
from sglang_layered.policies.sparing import SparingPolicy
from sglang_layered.policies.staggered import MOST_OF_TTFT, OF_COHORT, StaggeredPolicy

TBT_S = 0.05
NEW = SloClass(10.0, TBT_S)
FLIGHT = Flying(4096, 4, NUM_LAYERS, 0.1, NEW)
AnyPolicy = TypeVar("AnyPolicy", bound=AutoPolicy)


def taught(policy: AnyPolicy) -> AnyPolicy:
    """One that has seen what steps take: a prompt of 1000 tokens 25 ms beside nobody."""
    policy.keep_tbt_limit(TBT_S)
    policy.begin(SIZES, LAYERS, START)
    for tokens in (256, 1024, 4096) * 20:
        for rows in (0, 4, 16):
            load = StepLoad(rows, 500 * rows, (tokens,), (0,), 6.0 if rows else float(NUM_LAYERS))
            policy.observe(load, linear(load))
            policy.observe(StepLoad(rows + 1, 500 * rows), linear(StepLoad(rows + 1)))
    return policy


def running(*rows: Decode) -> Running:
    return Running.of(rows)


def waiting(*prompts: tuple[int, float, float]) -> list[Waiting]:
    """Tokens, seconds waited, limit of the first token."""
    return [Waiting(tokens, 0, waited_s, SloClass(ttft_s)) for tokens, waited_s, ttft_s in prompts]


def test_each_is_found_by_its_name_and_can_what_it_says() -> None:
    for name in LEARNED_POLICIES:
        policy = find_policy(name, group_tokens=64, num_groups=None)
        assert isinstance(policy, AutoPolicy) and policy.group_tokens == 64
        assert str(policy).startswith(name)


class TestFlowPrefill:
    def test_admits_by_deadline_and_those_who_are_late_last(self) -> None:
        queue = waiting((400, 0.0, 5.0), (400, 1.0, 0.5), (400, 0.1, 1.0), (400, 2.0, 0.5))
        assert [*taught(FlowPrefillPolicy()).order(Snapshot(queue))] == [2, 0, 3, 1]

    def test_a_cohort_ends_before_the_prompt_that_would_make_its_first_late(self) -> None:
        queue = waiting((4000, 0.0, 60.0), (400, 0.0, 0.05))
        assert [*taught(FlowPrefillPolicy()).order(Snapshot(queue))] == [1]
        queue = waiting((4000, 0.0, 60.0), (400, 0.0, 1.0))
        assert [*taught(FlowPrefillPolicy()).order(Snapshot(queue))] == [1, 0]

    def test_a_higher_priority_comes_first_whatever_its_deadline(self) -> None:
        queue = [*waiting((400, 0.0, 0.5)), Waiting(400, 0, 0.0, SloClass(9.0), priority=1)]
        assert [*taught(FlowPrefillPolicy()).order(Snapshot(queue))] == [1, 0]

    def test_without_limits_the_order_is_that_of_coming(self) -> None:
        queue = [Waiting(100, 0, waited_s) for waited_s in (3.0, 2.0, 1.0)]
        assert [*taught(FlowPrefillPolicy()).order(Snapshot(queue))] == [0, 1, 2]

    def preempted(self, flight: Flying, *prompts: tuple[int, float, float]) -> Any:
        view = Snapshot(waiting(*prompts), flying=[flight], num_waiting=len(prompts), max_tokens=8192)
        return taught(FlowPrefillPolicy()).preempt(view)

    def test_who_is_due_earlier_goes_before_the_cohort(self) -> None:
        assert self.preempted(FLIGHT, (400, 0.0, 20.0), (300, 0.0, 0.3), (300, 0.0, 0.2)) == [2, 1]

    def test_nobody_goes_before_who_then_would_be_late(self) -> None:
        tight = FLIGHT._replace(slo=SloClass(0.1 + 0.11))  # its last 20 layers take 72 ms
        assert self.preempted(tight, (300, 0.0, 0.1)) is not None
        assert self.preempted(tight._replace(slo=SloClass(0.1 + 0.078)), (300, 0.0, 0.07)) is None

    def test_who_cannot_be_in_time_stays(self) -> None:
        assert self.preempted(FLIGHT, (4000, 0.0, 0.05)) is None
        assert self.preempted(FLIGHT, (300, 0.5, 0.3)) is None

    def test_it_decides_when_somebody_comes_or_is_done_and_not_between(self) -> None:
        policy = taught(FlowPrefillPolicy())
        view = Snapshot(waiting((300, 0.0, 0.3)), flying=[FLIGHT], num_waiting=1)
        assert policy.preempt(view) == [0]
        assert policy.preempt(view) is None
        later = Snapshot(view.waiting, flying=[FLIGHT._replace(done_layers=5)], num_waiting=1)
        assert policy.preempt(later) is None
        assert policy.preempt(Snapshot(waiting(*[(300, 0.0, 0.3)] * 2), flying=later.flying, num_waiting=2))
        next_chunk = Snapshot(view.waiting, flying=[FLIGHT._replace(done_layers=1)], num_waiting=2)
        assert policy.preempt(next_chunk) == [0]


class TestSparing:
    """What `fair-batching` and `near-late` share."""

    def test_all_decode_when_one_of_them_is_nearly_due(self) -> None:
        policy = taught(NearLatePolicy())
        rows = [Decode(500, 5, 1.0, since_s, NEW) for since_s in (0.001, 0.001, 0.045)]
        assert policy.decode_rows(Snapshot(running=running(*rows), flying=[FLIGHT])) is None

    def test_only_the_first_decodes_while_all_have_time(self) -> None:
        policy = taught(NearLatePolicy())
        rows = [Decode(500, 5, 1.0, since_s, SloClass(10.0, 0.5)) for since_s in (0.001, 0.02, 0.01)]
        assert policy.decode_rows(Snapshot(running=running(*rows), flying=[FLIGHT])) == [1]

    def test_a_step_ends_in_time_for_those_who_sat_out(self) -> None:
        policy = taught(NearLatePolicy())
        rows = [Decode(500, 5, 1.0, 0.1, SloClass(10.0, 0.2))] * 4
        assert policy.decode_rows(Snapshot(running=running(*rows), flying=[FLIGHT])) == [0]
        load = StepLoad(1, 500, (4096,), (0,))
        paced = policy.next_layers(PaceView(load, 4, due_s=0.001))
        assert paced.fits and paced.layers > 1
        assert 0.1 + paced.predicted_s + 2 * linear(StepLoad(4)) < 0.2

    def test_who_is_late_already_hurries_nobody(self) -> None:
        policy = taught(FairBatchingPolicy())
        late = Decode(500, 5, 60.0, 0.01, NEW)
        early = Decode(500, 5, 1.0, 0.01, NEW)
        view = Snapshot(running=running(late, early), flying=[FLIGHT])
        assert policy.decode_rows(view) == [0]
        assert policy.decode_rows(Snapshot(running=running(late, late), flying=[FLIGHT])) is None

    def test_without_a_cohort_in_flight_nothing_is_spared(self) -> None:
        rows = running(Decode(500, 5, 1.0, 0.0, SloClass(10.0, 9.0)))
        assert taught(NearLatePolicy()).decode_rows(Snapshot(running=rows)) is None

    def test_gaps_of_who_sat_out_are_misses_only_where_gaps_are_kept(self) -> None:
        for policy, misses in ((taught(NearLatePolicy()), True), (taught(FairBatchingPolicy()), False)):
            rows = [Decode(500, 5, 0.1, 0.001, SloClass(10.0, 0.5))] * 2
            assert policy.decode_rows(Snapshot(running=running(*rows), flying=[FLIGHT]))
            overhead_s, margin = policy.overhead.value_s, policy.margin.part
            policy.observe_gap(2 * TBT_S, was_planned=True)
            assert policy.overhead.value_s == overhead_s
            assert (policy.margin.part > margin) is misses


def test_the_line_of_fair_batching_lets_early_tokens_pay_for_a_late_one() -> None:
    rows = running(
        Decode(500, 1, 1.0, 0.0, SloClass(2.0, 0.1)),  # the first token, a second before its limit
        Decode(500, 11, 1.0, 0.0, SloClass(2.0, 0.1)),  # ten tokens further
        Decode(500, 11, 4.0, 0.0, SloClass(2.0, 0.1)),
    )
    assert FairBatchingPolicy().due_s(rows).tolist() == pytest.approx([1.0, 2.0, -1.0])


class TestNearLate:
    def test_the_shortest_comes_first_within_a_priority(self) -> None:
        queue = [Waiting(500), Waiting(20), Waiting(900, priority=2), Waiting(500)]
        assert [*NearLatePolicy().order(Snapshot(queue))] == [2, 1, 0, 3]

    def test_cohorts_have_whole_tiles_where_prompts_are_cut(self) -> None:
        policy = taught(NearLatePolicy())
        view = QueueView((5000, 3000), (0, 0), 4, 2000, TBT_S, 1000)
        assert policy.cohort_tokens(view) % TILE == 0
        assert policy.cohort_tokens(QueueView((300,), (0,), 4, 2000, TBT_S, 1000)) >= 300


class TestStaggered:
    def test_holds_for_part_of_the_cohorts_time_and_less_the_older_its_oldest_is(self) -> None:
        policy = taught(StaggeredPolicy())
        window_s = OF_COHORT * policy.prompt_s(1000)
        held = [
            policy.hold(Snapshot(waiting((1000, each, 60.0)), max_tokens=8192)) for each in (0.0, 0.005, 1.0)
        ]
        assert held == pytest.approx([window_s, window_s - 0.005, 0.0])

    def test_never_for_more_than_a_part_of_the_limit_on_the_first_token(self) -> None:
        held_s = taught(StaggeredPolicy()).hold(Snapshot(waiting((4000, 0.0, 0.02)), max_tokens=8192))
        assert held_s == pytest.approx(MOST_OF_TTFT * 0.02)

    def test_a_cohort_that_is_as_good_as_full_goes(self) -> None:
        assert (
            taught(StaggeredPolicy()).hold(Snapshot(waiting(*[(3000, 0.0, 9.0)] * 2), max_tokens=8192)) == 0
        )


def calls_of(ask: Any) -> int:
    """Python functions that it calls: what it costs, whatever the machine."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        ask()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("kind", [FairBatchingPolicy, NearLatePolicy])
def test_deciding_who_decodes_costs_as_much_for_256_requests_as_for_8(kind: type[SparingPolicy]) -> None:
    policy = taught(kind())
    counts = []
    for number in (8, 256):
        rows = running(*[Decode(500, 5, 0.1, 0.001, SloClass(10.0, 0.5))] * number)
        view = Snapshot(running=rows, flying=[FLIGHT])
        policy.decode_rows(view)
        counts.append(calls_of(lambda view=view: policy.decode_rows(view)))  # type: ignore[misc]
    assert counts[0] == counts[1] < 50, counts


def test_between_events_preempting_costs_nothing_however_many_wait() -> None:
    policy = taught(FlowPrefillPolicy())
    view = Snapshot(waiting(*[(300, 0.0, 0.3)] * 128), flying=[FLIGHT], num_waiting=400)
    policy.preempt(view)
    assert calls_of(lambda: policy.preempt(view)) < 8
