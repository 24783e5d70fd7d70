"""Short prompts overtake the cohort in flight; the exact model checks every row of every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from exact_scheduler import ExactScheduler
from exact_swap import exact_scheduler
from harness import SteppedScheduler
from prompts import alone, prompt
from sglang_layered.scheduler import overtaking

NUM_LAYERS = 7
ON = {"layered_max_parked": 1, "layered_short_tokens": 64, "layered_group_tokens": 100}


@pytest.fixture
def exact(stepped: SteppedScheduler) -> Iterator[ExactScheduler]:
    """Groups of one layer or two, and four prompts of 500 tokens do not fit together."""
    with exact_scheduler(stepped, NUM_LAYERS, **ON) as exact:
        yield exact
        exact.settle()


def cohorts(exact: ExactScheduler) -> list[tuple[tuple[str, ...], int]]:
    """Requests in flight and the group that is next, the cohort that runs last."""
    items = exact.stepped.loop.cohorts.inflight
    return [(item.cohort.request_ids, item.cohort.next_group) for item in items]


def behind_a_long_one(
    exact: ExactScheduler, decodes: bool = True, length: int = 30, priorities: tuple[int, int] = (0, 0)
) -> tuple[str, str]:
    """A long prompt that has run a group, and another one, short by default, that has just come."""
    if decodes:
        exact.send(prompt(10, 1), 60)
        exact.step(3)
    long = exact.send(prompt(500, 2), 4, priority=priorities[0])
    exact.step()
    assert cohorts(exact) == [((long,), 1)]
    return long, exact.send(prompt(length, 3), 12, priority=priorities[1])


@pytest.fixture(params=[False, True], ids=["waits for room", "preempts"])
def preempts(exact: ExactScheduler, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Prompts go by priority, and those of a higher one may make room for themselves."""
    with exact.stepped.queue_policy("fcfs", priority=True, preempts=request.param):
        yield request.param
        exact.settle()


@pytest.mark.parametrize("decodes", [True, False])
def test_a_short_prompt_goes_before_a_long_one(exact: ExactScheduler, decodes: bool) -> None:
    long, short = behind_a_long_one(exact, decodes)
    exact.step()
    assert exact.launched(short) == 1 and cohorts(exact) == [((long,), 1)]
    exact.step()
    assert exact.launched(short) == 2 and cohorts(exact) == [((long,), 2)]


def test_nobody_overtakes_twice_between_two_groups(exact: ExactScheduler) -> None:
    long, _ = behind_a_long_one(exact)
    for seed in range(20, 40):
        groups = cohorts(exact)
        if long in {req.rid for req in exact.scheduler.running_batch.reqs}:
            break
        exact.send(prompt(30, seed), 2)
        exact.step(2)
        assert not groups or dict(groups)[(long,)] != dict(cohorts(exact)).get((long,))
    assert exact.launched(long) >= 1


def test_nobody_overtakes_again_where_those_that_did_are_aborted(exact: ExactScheduler) -> None:
    long, short = behind_a_long_one(exact)
    assert exact.stepped.change({"layered_num_groups": 3})
    for seed in range(3):
        exact.step()
        assert [rids for rids, _ in cohorts(exact)] == [(long,), (short,)]
        exact.abort(short)
        short = exact.send(prompt(30, 20 + seed), 2)
        exact.step()
        assert cohorts(exact) == [((long,), seed + 2)]


def test_short_and_long_prompts_share_no_cohort(exact: ExactScheduler) -> None:
    exact.send(prompt(10, 1), 60)
    exact.step(3)
    long, short, other = (exact.send(prompt(length, length), 4) for length in (300, 30, 150))
    exact.step()
    assert exact.launched(short) == 1 and cohorts(exact) == [((long, other), 0)]


@pytest.mark.parametrize("evicted", [False, True])
def test_a_long_history_is_short_while_it_is_cached(exact: ExactScheduler, evicted: bool) -> None:
    history = prompt(400, 7)
    exact.finish(exact.send(history, 2))
    long, _ = behind_a_long_one(exact, length=60)
    turn = exact.send([*history, *prompt(20, 8)], 4)
    exact.step()  # it was looked up, and does not fit beside the other one
    if evicted:
        exact.take_slots(100_000)
        exact.give_slots()
    exact.step(2)
    assert exact.launched(turn) == (not evicted) and cohorts(exact) == [((long,), 2 + evicted)]


def test_more_short_prompts_than_fit_into_one_turn_wait(exact: ExactScheduler) -> None:
    long, first = behind_a_long_one(exact)
    second, third = (exact.send(prompt(30, seed), 4) for seed in (4, 5))
    exact.step()
    assert [exact.launched(rid) for rid in (first, second, third)] == [1, 1, 0]
    exact.step(2)
    assert exact.launched(third) == 1 and cohorts(exact) == [((long,), 2)]


@pytest.mark.parametrize("who", ["long", "short", "both", "all"])
@pytest.mark.parametrize("short_groups", [1, 3])
def test_aborts_while_one_is_parked(exact: ExactScheduler, who: str, short_groups: int) -> None:
    long, short = behind_a_long_one(exact)
    if short_groups > 1:
        assert exact.stepped.change({"layered_num_groups": short_groups})
    exact.step()
    if who == "all":
        exact.abort_all()
    for rid in {"long": [long], "short": [short], "both": [long, short], "all": []}[who]:
        exact.abort(rid)
    exact.step()
    assert long not in exact.cohort or who == "short"
    exact.step(3)
    assert {long, short} & set(exact.live) == {"long": {short}, "short": {long}}.get(who, set())


@pytest.mark.parametrize("mode", ["retract", "in_place"])
@pytest.mark.parametrize("short_groups", [1, 3])
def test_a_pause_while_one_is_parked(exact: ExactScheduler, mode: str, short_groups: int) -> None:
    behind_a_long_one(exact)
    if short_groups > 1:
        assert exact.stepped.change({"layered_num_groups": short_groups})
    exact.step()
    exact.pause(mode)
    exact.stepped.resume()


def test_a_full_pool_while_one_is_parked(exact: ExactScheduler) -> None:
    behind_a_long_one(exact)
    assert exact.stepped.change({"layered_num_groups": 3})
    exact.step()
    assert len(cohorts(exact)) == 2
    exact.take_slots(3000)
    exact.step(3)
    assert not cohorts(exact)


def test_a_parked_cohort_goes_on_when_an_operator_lets_nobody_overtake(exact: ExactScheduler) -> None:
    long, short = behind_a_long_one(exact)
    exact.step()
    assert exact.stepped.change({"layered_max_parked": 0})
    late = exact.send(prompt(30, 4), 4)
    exact.step(2)
    assert exact.launched(short) == 3 and not exact.launched(late)
    exact.finish(long, late)
    assert exact.stepped.change({"layered_max_parked": 1})


def test_a_short_prompt_waits_where_the_next_chunk_needs_the_room(exact: ExactScheduler) -> None:
    """A prompt of three chunks: its first is in flight and the others have no slots yet."""
    exact.send(prompt(10, 1), 60)
    exact.step(3)
    chunked = exact.send(prompt(1200, 2), 4)
    exact.step()
    free = exact.scheduler.token_to_kv_pool_allocator.available_size()
    exact.take_slots(free - 750)
    short = exact.send(prompt(30, 3), 100)
    exact.step(2)
    assert not exact.launched(short)
    exact.give_slots()
    exact.finish(chunked)


def test_tokens_of_a_real_model_are_those_without_overtaking(stepped: SteppedScheduler) -> None:
    sizes = [(10, 30), (700, 5), (30, 6), (200, 7), (60, 8), (40, 9)]
    prompts = [prompt(length, 50 + length) for length, _ in sizes]
    expected = [alone(stepped, tokens, new) for tokens, (_, new) in zip(prompts, sizes, strict=True)]
    assert stepped.change({"layered_max_parked": 1})
    rids = []
    for tokens, (_, new) in zip(prompts, sizes, strict=True):
        rids.append(stepped.send(tokens, new))
        stepped.step(2)
    try:
        assert stepped.finish(*rids) == expected
    finally:
        assert stepped.change({"layered_max_parked": 0})
    parked = [event for event in stepped.events if type(event).__name__ == "CohortAdmitted"]
    assert len(parked) >= 5


def test_a_step_looks_up_few_prompts_of_a_long_queue(
    exact: ExactScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the prefix cache, to tell who is short; each once."""
    looked_up: list[str] = []
    look_up = overtaking.look_up_cached_tokens

    def counting(scheduler: Any, req: Any) -> int:
        looked_up.append(req.rid)
        return look_up(scheduler, req)

    monkeypatch.setattr(overtaking, "look_up_cached_tokens", counting)
    exact.limit_running(2)
    behind_a_long_one(exact)
    waiting = [exact.send(prompt(100, seed), 2) for seed in range(60, 80)]
    before = 0
    while set(waiting) & set(exact.live):
        exact.step()
        assert len(looked_up) - before <= 2 * overtaking.MOST_LOOKED_UP  # to admit, then to overtake
        before = len(looked_up)
    assert len(set(looked_up)) == len(looked_up) > 10
    exact.limit_running(exact.scheduler.max_running_requests)


@pytest.mark.usefixtures("preempts")
@pytest.mark.parametrize("length", [30, 400])
def test_a_prompt_of_a_higher_priority_goes_before_whatever_its_length(
    exact: ExactScheduler, length: int
) -> None:
    long, urgent = behind_a_long_one(exact, length=length, priorities=(0, 5))
    exact.step(-(-length // 100))
    assert exact.launched(urgent) and cohorts(exact)[0] == ((long,), 1)
    exact.step()
    assert cohorts(exact)[0] == ((long,), 2)


@pytest.mark.usefixtures("preempts")
def test_nobody_goes_before_a_cohort_of_a_higher_priority(exact: ExactScheduler) -> None:
    long, short = behind_a_long_one(exact, priorities=(5, 0))
    equal, urgent = (exact.send(prompt(30, 3 + priority), 4, priority=priority) for priority in (5, 6))
    exact.step()
    assert exact.launched(urgent) == exact.launched(equal) == 1
    exact.step(4)
    assert exact.launched(long) and not exact.launched(short)
    exact.step()
    assert exact.launched(short)


@pytest.mark.usefixtures("preempts")
def test_a_prompt_of_a_higher_priority_that_is_too_long_lets_nobody_else_go(exact: ExactScheduler) -> None:
    """This one has more tokens than a cohort may; after the one in flight it is the first."""
    long, urgent = behind_a_long_one(exact, length=600, priorities=(0, 5))
    short = exact.send(prompt(30, 4), 4, priority=0)
    exact.finish(long)
    assert exact.cohort == (urgent,) and not exact.launched(short)


def test_short_prompts_do_not_go_before_long_ones_of_a_higher_priority(
    exact: ExactScheduler, preempts: bool
) -> None:
    exact.send(prompt(10, 1), 60)
    exact.step(3)
    sizes = {"late": (30, 0), "long": (300, 3), "first": (40, 4)}
    rids = {
        name: exact.send(prompt(length, length), 4, priority=priority)
        for name, (length, priority) in sizes.items()
    }
    exact.step()
    assert exact.launched(rids["first"]) == 1 and not exact.launched(rids["late"])
    exact.step()
    assert exact.cohort == (rids["long"],)


def test_preemption_takes_what_runs_and_leaves_what_is_in_flight(
    exact: ExactScheduler, preempts: bool
) -> None:
    """Two may run at a time: a stream and the long prompt."""
    exact.limit_running(2)
    long, urgent = behind_a_long_one(exact, priorities=(0, 20))
    [stream] = [req.rid for req in exact.scheduler.running_batch.reqs]
    exact.step()
    assert bool(exact.launched(urgent)) == preempts and long in exact.cohort
    assert (stream in {req.rid for req in exact.scheduler.waiting_queue}) == preempts
    exact.finish(long, urgent, stream)
    exact.limit_running(exact.scheduler.max_running_requests)


def test_whom_sglang_preempts_for_a_prompt_that_does_not_fit_waits(exact: ExactScheduler) -> None:
    exact.limit_running(1)
    with exact.stepped.queue_policy("fcfs", priority=True, preempts=True):
        stream = exact.send(prompt(10, 1), 30, priority=0)
        exact.step(3)
        exact.take_slots(exact.scheduler.token_to_kv_pool_allocator.available_size() - 50)
        urgent = exact.send(prompt(400, 2), 2, priority=20)
        exact.step()
        assert {req.rid for req in exact.scheduler.waiting_queue} == {stream, urgent}
        exact.settle()
