"""Requests that leave early: what waits comes in, the others go on, and nothing half filled stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from exact_scheduler import ExactScheduler
from exact_swap import exact_scheduler
from harness import SteppedScheduler
from prompts import alone, prompt

NUM_GROUPS = 7


@pytest.fixture
def exact(stepped: SteppedScheduler) -> Iterator[ExactScheduler]:
    """Seven layers, one layer a group whatever the prompt."""
    with exact_scheduler(stepped, NUM_GROUPS) as exact:
        assert stepped.change({"layered_num_groups": NUM_GROUPS})
        yield exact
        exact.settle()


def in_flight(exact: ExactScheduler, *lengths: int, group: int = 1) -> list[str]:
    """Prompts that are one cohort and run this group next."""
    rids = [exact.send(prompt(length, length), 6) for length in lengths]
    exact.step(group)
    assert (exact.cohort, exact.stepped.next_group) == (tuple(rids), group)
    return rids


@pytest.mark.parametrize("each", [False, True])
def test_what_waits_for_a_request_slot_comes_in_after_an_abort_of_all_that_ran(
    exact: ExactScheduler, each: bool
) -> None:
    exact.limit_running(3)
    running = exact.send(prompt(20, 1), 100)
    exact.step(3)
    pair = [exact.send(prompt(300, 2), 4), exact.send(prompt(40, 3), 4)]
    waiting = exact.send(prompt(30, 4), 4)
    exact.step(3)
    assert exact.cohort == tuple(pair)
    if each:
        for rid in (running, *pair):
            exact.abort(rid)
    else:
        exact.abort_all()
        waiting = exact.send(prompt(30, 4), 4)
    exact.finish(waiting)


@pytest.mark.parametrize("steps_to_the_end", [0, 1, 2])
def test_what_waits_comes_in_when_the_last_decode_ends_as_the_cohort_is_aborted(
    exact: ExactScheduler, steps_to_the_end: int
) -> None:
    exact.limit_running(3)
    running = exact.send(prompt(20, 1), 9)
    exact.step(3)
    pair = [exact.send(prompt(300, 2), 4), exact.send(prompt(40, 3), 4)]
    waiting = exact.send(prompt(30, 4), 4)
    while running in exact.live and exact.launched(running) < 9 - steps_to_the_end:
        exact.step()
    for rid in pair:
        exact.abort(rid)
    exact.finish(waiting)


def test_what_waits_for_kv_comes_in_after_an_abort_of_all_that_ran(exact: ExactScheduler) -> None:
    running = exact.send(prompt(20, 1), 100)
    exact.step(3)
    exact.take_slots(2000)
    [long] = in_flight(exact, 500)
    waiting = exact.send(prompt(700, 4), 4)
    exact.step()
    for rid in (running, long):
        exact.abort(rid)
    exact.finish(waiting)


@pytest.mark.parametrize("leaves", [0, 1, 2])
@pytest.mark.parametrize("group", [1, 3, 6])
def test_an_aborted_request_leaves_its_cohort_at_the_next_group(
    exact: ExactScheduler, group: int, leaves: int
) -> None:
    exact.send(prompt(10, 7), 60)
    exact.step(2)
    rids = in_flight(exact, 120, 90, 60, group=group)
    free = exact.scheduler.token_to_kv_pool_allocator.available_size()
    exact.abort(rids[leaves])
    exact.step()
    stay = [rid for rid in rids if rid != rids[leaves]]
    assert rids[leaves] not in exact.live
    assert exact.answers[rids[leaves]] == []
    lengths = {rid: len(exact.prompts[rid]) for rid in rids}
    assert exact.scheduler.token_to_kv_pool_allocator.available_size() >= free + lengths[rids[leaves]] - 2
    assert exact.cohort == (tuple(stay) if group < NUM_GROUPS - 1 else ())
    exact.finish(*stay)


def test_requests_leave_one_after_another(exact: ExactScheduler) -> None:
    exact.send(prompt(10, 7), 60)
    exact.step(2)
    rids = in_flight(exact, 120, 90, 60, 30)
    for index in (2, 0, 3):
        exact.abort(rids[index])
        exact.step()
    exact.finish(rids[1])


def test_a_chunk_leaves_a_cohort_that_goes_on(exact: ExactScheduler) -> None:
    exact.send(prompt(10, 7), 60)
    exact.step(2)
    short, chunked = exact.send(prompt(60, 60), 6), exact.send(prompt(900, 900), 6)
    exact.step(2)
    assert exact.cohort == (short, chunked)
    exact.abort(chunked)
    exact.step()
    assert exact.cohort == (short,)
    assert exact.scheduler.chunked_req is None
    exact.finish(short)


@pytest.mark.parametrize("is_turn", [False, True])
@pytest.mark.parametrize("how", ["pool full", "paused"])
def test_an_aborted_request_that_sglang_retracts_does_not_start_again(
    exact: ExactScheduler, how: str, is_turn: bool
) -> None:
    """The abort marks a running request; before a result ends it, SGLang sends it back to the queue."""
    stays = exact.send(prompt(20, 1), 60)
    exact.step(2)
    tokens = prompt(1200, 2)
    if is_turn:
        leaves = exact.conversations.turn(exact.conversations.open(), tokens, 60)
    else:
        leaves = exact.send(tokens, 60)
    while not exact.answers[leaves]:
        exact.step()
    exact.abort(leaves)
    if how == "paused":
        exact.pause("retract")
        exact.stepped.resume()
    else:
        exact.take_slots(exact.scheduler.token_to_kv_pool_allocator.available_size() - 1)
    exact.step()
    exact.give_slots()
    exact.step(2)
    assert exact.stepped.reqs[leaves].retraction_count == 1 or how == "paused"
    assert exact.live == [stays]
    exact.finish(stays)


@pytest.mark.parametrize("turns_before", [0, 1])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("disturbance", ["paused", "no room", "aborted"])
def test_a_session_goes_on_from_what_was_computed(
    exact: ExactScheduler, disturbance: str, group: int, turns_before: int
) -> None:
    """A turn leaves half filled; that turn or the next must answer as in an undisturbed session."""
    session = exact.conversations.open()
    for _ in range(turns_before):
        exact.finish(exact.conversations.turn(session, prompt(100, 1), 4))
    exact.send(prompt(10, 7), 80)
    exact.step(2)
    turn = exact.conversations.turn(session, prompt(300, 2), 6)
    exact.step(group)
    assert exact.cohort == (turn,)
    if disturbance == "paused":
        exact.pause("retract")
        exact.stepped.resume()
    elif disturbance == "no room":
        exact.take_slots(10_000)
        exact.step()
        assert exact.cohort == ()
        exact.give_slots()
    else:
        exact.abort(turn)
        exact.step()
    exact.finish(turn)
    exact.finish(exact.conversations.turn(session, prompt(150, 3), 6))


def test_the_last_request_has_room_beside_turns_that_keep_theirs(exact: ExactScheduler) -> None:
    """SGLang retracts a session's turn without gain; it would then abort the request beside a cohort."""
    running = exact.send(prompt(10, 7), 60)
    exact.step(2)
    turn = exact.conversations.turn(exact.conversations.open(), prompt(200, 1), 20)
    exact.step(9)
    in_flight(exact, 61)
    exact.take_slots(10_000)
    exact.step(2)
    assert exact.cohort == ()
    assert running not in exact.aborted
    exact.give_slots()
    exact.finish(running, turn)


def test_log_probabilities_stay_with_their_request(stepped: SteppedScheduler) -> None:
    """The rows of the one that leaves, and its prompt's log-probabilities, come first."""
    tokens = prompt(90, 5)
    rid = stepped.send(tokens, 3, return_logprob=True, logprob_start_len=40)
    stepped.finish(rid)
    expected = stepped.reqs[rid].logprob.input_token_logprobs_val
    stepped.drain()
    stepped.send(prompt(10, 7), 40)
    stepped.step(2)
    leaves = stepped.send(prompt(120, 6), 3, return_logprob=True, logprob_start_len=70)
    stays = stepped.send(tokens, 3, return_logprob=True, logprob_start_len=40)
    stepped.step(2)
    stepped.abort(leaves)
    stepped.finish(stays)
    got = stepped.reqs[stays].logprob.input_token_logprobs_val
    assert got[1:] == pytest.approx(expected[1:], abs=1e-4)


def test_a_pause_ends_what_was_aborted_in_flight(stepped: SteppedScheduler) -> None:
    expected = alone(stepped, prompt(90, 5), 3)
    stepped.send(prompt(10, 7), 40)
    stepped.step(2)
    leaves, stays = stepped.send(prompt(120, 6), 3), stepped.send(prompt(90, 5), 3)
    stepped.step(2)
    stepped.abort(leaves)
    stepped.pause("retract")
    assert [req.rid for req in stepped.scheduler.waiting_queue if req.rid == leaves] == []
    stepped.resume()
    assert stepped.finish(stays) == [expected]
