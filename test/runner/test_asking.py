"""A policy's wishes on the real scheduler with the exact model: done, bounded, and no token changes."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from sglang.srt.managers.schedule_batch import FINISH_ABORT

from asked import answers, everybody, exact, start_decoding
from exact_scheduler import ExactScheduler
from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.core import bounds
from sglang_layered.core.events import PolicyAnswered
from sglang_layered.core.questions import SloClass, Snapshot
from sglang_layered.scheduler import asking, rank_clock
from wishes import Wishes, in_force

__all__ = ["exact"]


def test_prompts_are_admitted_in_the_order_that_the_policy_says(exact: ExactScheduler) -> None:
    policy = Wishes(order=lambda view: everybody(view)[::-1])
    start_decoding(exact)
    with in_force(exact.stepped, policy):
        first, second, third = (exact.send(prompt(400, seed), 3) for seed in (1, 2, 3))
        exact.step()
        assert exact.cohort == (third, second)
        assert [req.rid for req in exact.scheduler.waiting_queue] == [first]
        exact.finish(first, second, third)
    assert answers(exact, "order")[0] == (third, second, first)
    assert [view.num_waiting for view in policy.views["order"]] == [3, 1]


def test_a_full_server_asks_nobody_and_its_first_place_goes_by_the_policy(exact: ExactScheduler) -> None:
    policy = Wishes(order=lambda view: everybody(view)[::-1], hold=lambda view: 0.0)
    [running] = start_decoding(exact)
    exact.limit_running(1)
    with in_force(exact.stepped, policy):
        first, second = (exact.send(prompt(100, seed), 3) for seed in (1, 2))
        exact.step(3)
        assert not policy.views["order"] and not policy.views["hold"]
        exact.abort(running)
        exact.finish(second)
        assert first in exact.live and exact.launched(first) == 0
        exact.finish(first)
    assert answers(exact, "order")[0] == (second, first)


def test_who_is_left_out_waits_but_not_for_ever(
    exact: ExactScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MOST_PASSED", 5)
    policy = Wishes(order=lambda view: everybody(view)[1:])
    start_decoding(exact)
    exact.liveness.most_steps = 10
    with in_force(exact.stepped, policy):
        left_out, first = exact.send(prompt(100, 1), 3), exact.send(prompt(100, 2), 3)
        exact.step()
        assert exact.cohort == (first,)
        exact.finish(first)
        exact.finish(left_out)
        passed = [view.waiting[0].passed for view in policy.views["order"]]
        assert passed == list(range(6)), "it was passed once a question"


def test_prompts_are_held_while_others_decode(exact: ExactScheduler) -> None:
    policy = Wishes(hold=lambda view: 10.0 if len(view.waiting) < 2 else 0.0)
    [running] = start_decoding(exact)
    with in_force(exact.stepped, policy):
        first = exact.send(prompt(100, 1), 3)
        before = exact.launched(running)
        exact.step(3)
        assert not exact.cohort and exact.launched(running) == before + 3
        second = exact.send(prompt(100, 2), 3)
        exact.step()
        assert exact.cohort == (first, second)
        exact.finish(first, second)
    assert answers(exact, "hold") == [(first,)]


def test_with_nothing_to_run_held_prompts_cost_no_core_and_are_held_up_to_the_cap(
    exact: ExactScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MOST_HELD_S", 0.05)
    naps: list[float] = []
    sleep = asking.time.sleep
    monkeypatch.setattr(asking.time, "sleep", lambda seconds: naps.append(seconds) or sleep(seconds))
    exact.liveness.most_steps = 100
    with in_force(exact.stepped, Wishes(hold=lambda view: 1e9)):
        rid = exact.send(prompt(100, 1), 3)
        exact.step()
        assert not exact.launched(rid) and naps == [asking.NAP_S]
        exact.finish(rid)
    assert len(naps) > 5 and max(naps) == asking.NAP_S


def test_the_policy_says_who_goes_before_the_cohort_in_flight(exact: ExactScheduler) -> None:
    policy = Wishes(preempt=lambda view: [1] if len(view.waiting) > 1 else None)
    exact.turns.anybody = True
    start_decoding(exact)
    with in_force(exact.stepped, policy):
        long = exact.send(prompt(500, 1), 3)
        exact.step()
        short, other = exact.send(prompt(20, 2), 3), exact.send(prompt(300, 3), 3)
        exact.step()
        assert exact.cohort == (long, other)
        while other in exact.cohort:
            exact.step()
        assert exact.cohort == (long,) and not exact.launched(short)
        exact.finish(long, short, other)
    assert answers(exact, "preempt") == [(other,)]
    [flying] = policy.views["preempt"][0].flying
    assert (flying.tokens, flying.done_layers, flying.num_layers, flying.times_overtaken) == (500, 1, 7, 0)
    assert policy.views["preempt"][-1].flying[-1].times_overtaken == 1


def test_who_may_overtake_fits_though_what_was_cached_is_evicted(exact: ExactScheduler) -> None:
    exact.turns.anybody = True
    exact.finish(exact.send(prompt(400, 7), 1))
    start_decoding(exact)
    asked: list[Snapshot] = []
    policy = Wishes(preempt=lambda view: everybody(view) if asked else asked.append(view))
    with in_force(exact.stepped, policy):
        long = exact.send(prompt(500, 1), 3)
        exact.step()
        first, second = (exact.send([*prompt(400, 7), *prompt(20, seed)], 3) for seed in (8, 9))
        exact.step()
        assert asked[0].waiting[1].tokens == 20
        exact.take_slots(100_000)
        exact.give_slots()
        exact.step()
        assert exact.cohort == (long, first)
        exact.finish(long, first, second)


def test_whatever_the_policy_says_a_cohort_runs_a_group_between_two_turns(exact: ExactScheduler) -> None:
    exact.turns.anybody = True
    start_decoding(exact)
    with in_force(exact.stepped, Wishes(preempt=everybody)):
        long = exact.send(prompt(500, 1), 3)
        exact.step()
        for seed in range(60):
            if exact.launched(long):
                break
            exact.send(prompt(5, 10 + seed), 1)
            exact.step()
        assert exact.launched(long)


def test_no_answer_lets_nobody_overtake(exact: ExactScheduler) -> None:
    start_decoding(exact)
    with in_force(exact.stepped, Wishes(preempt=lambda view: None)):
        long = exact.send(prompt(500, 1), 3)
        exact.step()
        exact.send(prompt(20, 2), 3)
        while not exact.launched(long):
            exact.step()
            assert exact.cohort in ((long,), ())


def test_what_a_policy_sees_of_requests(stepped: SteppedScheduler) -> None:
    policy = Wishes(order=everybody, decode_rows=lambda view: None)
    running = stepped.send(prompt(10, 1), 40)
    stepped.step(3)
    with in_force(stepped, policy):
        limits = {"slo_ttft_ms": 500, "slo_tbt_ms": None}
        rid = stepped.send(prompt(300, 4), 3, priority=7, sampling={"custom_params": limits})
        stepped.step(3)
        stepped.finish(rid, running)
        [view] = [view for view in policy.views["order"] if view.waiting]
        [waiting] = view.waiting
        assert (waiting.tokens, waiting.prefix_tokens, waiting.priority) == (300, 0, 7)
        assert waiting.slo == SloClass(0.5) and 0 <= waiting.waited_s < 10
        decodes = policy.views["decode_rows"]
        contexts = [int(each.running.context_tokens[0]) for each in decodes]
        assert contexts == list(range(contexts[0], contexts[0] + len(decodes)))
        last = decodes[-1].running
        assert last.context_tokens - last.output_tokens == [10]
        assert last.tbt_s == [1e3] and 0 <= last.since_token_s < last.age_s
        assert decodes[-1].flying[0].slo == SloClass(0.5) and decodes[-1].flying[0].priority == 7


@pytest.mark.parametrize("limit", [-1, "soon"])
def test_a_limit_without_a_meaning_ends_its_request_before_it_runs(
    stepped: SteppedScheduler, limit: object
) -> None:
    with in_force(stepped, Wishes(order=everybody)):
        rid = stepped.send(prompt(300, 4), 3, sampling={"custom_params": {"slo_ttft_ms": limit}})
        other = stepped.send(prompt(30, 5), 3)
        stepped.finish(rid, other)
    reason = stepped.reqs[rid].finished_reason
    assert isinstance(reason, FINISH_ABORT) and "custom_params slo_ttft_ms" in reason.message
    assert len(stepped.reqs[other].output_ids) == 3


@pytest.mark.parametrize("question", ["order", "hold", "preempt", "decode_rows"])
def test_a_policy_that_raises_sends_the_server_to_chunked_mode(
    exact: ExactScheduler, question: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(view: Snapshot) -> Sequence[int]:
        raise RuntimeError("no idea")

    monkeypatch.setattr(exact.stepped.loop._checker, "is_strict", False)
    start_decoding(exact)
    exact.most_sat_out = 1  # while a prompt is computed whole in the step in which the mode changes
    with in_force(exact.stepped, Wishes(**{question: fails})):
        exact.send(prompt(300, 4), 3)
        exact.send(prompt(30, 5), 3)
        exact.step(4)
        assert not exact.stepped.loop.controls.is_layered and "policy failed" in caplog.text
        assert exact.stepped.change({"layered_prefill": 1})


def test_the_example_that_answers_all_questions_changes_no_token(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    monkeypatch.setattr(importlib.import_module("policy_by_deadline"), "GROUP_TOKENS", 64)
    times_s = itertools.count(0.0, 0.03)  # a step takes so long: on a real clock another run asks otherwise
    monkeypatch.setattr(rank_clock, "time", SimpleNamespace(monotonic=lambda: next(times_s)))
    sizes = [(10, 40), (500, 5), (30, 6), (200, 7), (60, 8)]
    prompts = [prompt(length, 91 + length) for length, _ in sizes]  # none meets a tie between two experts
    expected = [
        stepped.finish(stepped.send(each, new))[0] for each, (_, new) in zip(prompts, sizes, strict=True)
    ]
    stepped.drain()
    controls, before = stepped.loop.controls, stepped.loop.controls.config
    named = replace(before, layered_policy="policy_by_deadline:ByDeadline", layered_max_parked=1)
    controls._adopt(named, "test")
    try:
        rids = []
        for priority, (tokens, (_, new)) in enumerate(zip(prompts, sizes, strict=True)):
            limits = {"custom_params": {"slo_tbt_ms": None if priority == 0 else 1e9}}  # the others are ahead
            rids.append(stepped.send(tokens, new, priority=priority, sampling=limits))
            stepped.step(2)
            if len(tokens) == 500:
                stepped.step_until(lambda: stepped.next_group == 2)
        assert stepped.finish(*rids) == expected
    finally:
        controls._adopt(before, "test")
        controls._learned = None
    heard = {event.question for event in stepped.events if isinstance(event, PolicyAnswered)}
    assert {"order", "preempt", "decode_rows"} <= heard
