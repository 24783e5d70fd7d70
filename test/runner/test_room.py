"""Between two chunks of a long prompt, running requests may have used up the slots that it was promised."""

import pytest

from exact_swap import exact_scheduler
from harness import SteppedScheduler
from prompts import alone, prompt
from sglang_layered.core.events import CohortAdmitted

CHUNKED = [512, 512, 176]


def between_chunks(stepped: SteppedScheduler) -> bool:
    return stepped.scheduler.chunked_req is not None and stepped.next_group is None


@pytest.mark.parametrize("num_chunks_done", [1, 2])
def test_a_prompt_without_room_for_its_next_chunk_waits_again(
    stepped: SteppedScheduler, num_chunks_done: int
) -> None:
    tokens = prompt(sum(CHUNKED), 41)
    expected = alone(stepped, tokens, 6)
    running, leaves = stepped.send(prompt(10, 42), 150), stepped.send(prompt(10, 44), 150)
    stepped.step(2)
    rid = stepped.send(tokens, 6)
    for _ in range(num_chunks_done):
        stepped.step_until(lambda: stepped.next_group is not None)
        stepped.step_until(lambda: between_chunks(stepped))
    with stepped.full_pool():
        before = len(stepped.reqs[running].output_ids)
        stepped.step(5)
        assert stepped.scheduler.waiting_queue == [stepped.reqs[rid]]
        assert len(stepped.reqs[running].output_ids) == before + 5
    stepped.abort(leaves)  # SGLang looks at the queue again when a request has left
    assert stepped.finish(rid) == [expected]
    rows = [event.prompt_rows[rid] for event in stepped.events if isinstance(event, CohortAdmitted)]
    assert rows[:num_chunks_done] == CHUNKED[:num_chunks_done]
    evicted = CHUNKED[num_chunks_done - 1]  # the cache gives up a whole chunk for the running request
    assert sum(rows) == sum(CHUNKED) + evicted


def test_a_prompt_aborted_between_chunks_needs_no_room(stepped: SteppedScheduler) -> None:
    stepped.send(prompt(10, 42), 150)
    stepped.step(2)
    rid = stepped.send(prompt(sum(CHUNKED), 43), 6)
    stepped.step_until(lambda: between_chunks(stepped))
    stepped.abort(rid)
    with stepped.full_pool():
        stepped.step(3)
    assert stepped.reqs[rid].finished()
    assert stepped.scheduler.waiting_queue == []


@pytest.mark.parametrize("layered", [0, 1])
def test_a_prompt_is_admitted_when_the_one_before_it_gives_up(
    stepped: SteppedScheduler, layered: int
) -> None:
    """SGLang marks the running batch full for the first prompt that waits, and keeps the mark without it."""
    with exact_scheduler(stepped, 7) as exact:
        assert stepped.change({"layered_prefill": layered})
        exact.send(prompt(10, 1), 200)
        exact.step(3)
        exact.take_slots(2000)
        first = exact.send(prompt(900, 2), 5)
        exact.step(3)
        assert stepped.scheduler.running_batch.batch_is_full
        second = exact.send(prompt(60, 3), 5)
        exact.abort(first)
        exact.step(2)
        assert second not in {req.rid for req in stepped.scheduler.waiting_queue}
        exact.settle()
