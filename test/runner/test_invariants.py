"""What the invariant checker looks at: a half-filled slot is found wherever KV is kept."""

from collections.abc import Iterator
from typing import Any

import pytest

from exact_scheduler import ExactScheduler
from exact_swap import exact_scheduler
from harness import SteppedScheduler
from prompts import prompt
from release_differences import in_tree, keep_more, ways_to_keep
from sglang_layered.core.events import DropReason
from sglang_layered.errors import InvariantError
from sglang_layered.upstream import room
from sglang_layered.upstream.cache import session_slots_of, session_values, tree_values
from sglang_layered.upstream.releases import requests


@pytest.fixture
def exact(stepped: SteppedScheduler) -> Iterator[ExactScheduler]:
    with exact_scheduler(stepped, 7) as exact:
        yield exact


def in_flight(exact: ExactScheduler) -> list[int]:
    """The new slots of a session's second turn that is on its way through the layers."""
    session = exact.conversations.open()
    exact.finish(exact.conversations.turn(session, prompt(100, 1), 4))
    exact.send(prompt(10, 7), 80)
    exact.step(2)
    exact.conversations.turn(session, prompt(300, 2), 6)
    exact.step(2)
    [(_, slots)] = exact.stepped.loop.cohorts.ledger
    return [int(slot) for slot in slots]


def check(exact: ExactScheduler) -> None:
    exact.stepped.loop._checker.between_steps()


def test_the_places_that_keep_kv_hold_what_is_computed(exact: ExactScheduler) -> None:
    partial = set(in_flight(exact))
    scheduler, [inflight] = exact.scheduler, exact.stepped.loop.cohorts.inflight
    held = session_values(scheduler.tree_cache, scheduler.req_to_token_pool.req_to_token, inflight.reqs)
    assert len(held) >= 103 and not partial & set(held.tolist())
    exact.settle()
    exact.finish(exact.send(prompt(50, 3), 2))
    tree = set(tree_values(scheduler.tree_cache).tolist())
    assert len(tree) >= 50
    exact.settle()


def test_a_half_filled_slot_in_a_session_is_found(exact: ExactScheduler) -> None:
    in_flight(exact)
    check(exact)
    sessions = session_slots_of(exact.scheduler.tree_cache)
    assert sessions is not None
    [slot], [inflight] = sessions.slots.values(), exact.stepped.loop.cohorts.inflight
    keep_more(slot, inflight.reqs[0], 1)
    with pytest.raises(InvariantError, match="streaming session's slot"):
        check(exact)
    keep_more(slot, inflight.reqs[0], -1)
    exact.settle()


def test_a_half_filled_slot_in_the_free_list_is_found(exact: ExactScheduler) -> None:
    partial = in_flight(exact)
    allocator = exact.scheduler.token_to_kv_pool_allocator
    free = allocator.free_pages
    allocator.free_pages = free.new_tensor([partial[0], *free.tolist()])
    with pytest.raises(InvariantError, match="in the free list"):
        check(exact)
    allocator.free_pages = free
    exact.settle()


def test_a_half_filled_slot_in_the_prefix_tree_is_found(exact: ExactScheduler) -> None:
    exact.finish(exact.send(prompt(50, 3), 2))
    partial = in_flight(exact)
    found = pytest.raises(InvariantError, match="in the prefix cache")
    with in_tree(exact.scheduler.tree_cache, partial[0]), found:
        check(exact)
    exact.settle()


def turn_in_flight(exact: ExactScheduler) -> Any:
    """The request of a session's first turn on its way through the layers."""
    session = exact.conversations.open()
    exact.send(prompt(10, 7), 80)
    exact.step(2)
    rid = exact.conversations.turn(session, prompt(300, 2), 6)
    exact.step(2)
    assert exact.cohort == (rid,)
    return exact.stepped.reqs[rid]


def test_nothing_keeps_a_request_in_flight(exact: ExactScheduler) -> None:
    cache, req = exact.scheduler.tree_cache, turn_in_flight(exact)
    for keep in ways_to_keep(cache, req):
        with pytest.raises(InvariantError, match=f"KV of request {req.rid} would be kept"):
            keep()
    exact.settle()


@pytest.mark.parametrize("how", ["retract", "KV pool full"])
def test_a_release_that_would_save_half_a_turn_is_caught(
    exact: ExactScheduler, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Given back as SGLang gives requests back, their session would keep what is filled of them."""
    turn_in_flight(exact)
    with monkeypatch.context() as patch:
        patch.setattr(room, "_give_back", lambda it, req: requests.release_unkept(req, it.tree_cache))
        with pytest.raises(InvariantError, match="would be kept before its last layer group"):
            if how == "retract":
                exact.stepped.pause("retract")
            else:
                exact.stepped.loop.drop(DropReason.KV_POOL_FULL)
    exact.stepped.resume()
    exact.settle()
