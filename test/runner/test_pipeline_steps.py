"""The pipeline loop tick by tick on virtual stages, with answers that are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from exact_pipeline import ExactPipeline, decode_beside, enter, exact_pipeline
from harness import SteppedScheduler
from prompts import prompt
from release_differences import MARKS_EMPTY_ONES_FULL
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.events import DropReason
from sglang_layered.scheduler.stream import Handlers, StepDone

CUTS = (0, 3, 6, 8)
NUM_LAYERS = CUTS[-1]


@pytest.fixture
def exact(stepped: SteppedScheduler) -> Iterator[ExactPipeline]:
    if stepped.scheduler.enable_overlap:
        pytest.skip(reason="SGLang's pipeline loop has no overlap scheduler: run with --without-overlap")
    with exact_pipeline(stepped, CUTS) as exact:
        assert stepped.change({"layered_group_tokens": 1})
        yield exact


def test_prompts_whole_in_cohorts_and_in_chunks(exact: ExactPipeline) -> None:
    decode_beside(exact)
    for index, length in enumerate((200, 90, 1100)):
        enter(exact, exact.send(prompt(length, 2 + index), 5))
    exact.settle()


@pytest.mark.parametrize("num_ticks", range(NUM_LAYERS))
def test_one_of_two_is_aborted_at_any_stage(exact: ExactPipeline, num_ticks: int) -> None:
    decode_beside(exact)
    gone, stays = exact.send(prompt(120, 2), 5), exact.send(prompt(100, 3), 5)
    enter(exact, gone, stays)
    exact.step(num_ticks - 1 if num_ticks else 0)
    assert gone in exact.cohort
    pool = exact.scheduler.req_to_token_pool
    rows, slots = pool.available_size(), exact.scheduler.token_to_kv_pool_allocator.available_size()
    exact.abort(gone)
    exact.step()
    assert gone not in exact.live
    assert exact.answers[gone] == []
    assert pool.available_size() == rows + 1
    assert exact.scheduler.token_to_kv_pool_allocator.available_size() >= slots + 119
    exact.settle()


@pytest.mark.parametrize("whom", ["everybody", "cohort first"])
def test_what_waits_is_admitted_when_all_that_runs_is_aborted(exact: ExactPipeline, whom: str) -> None:
    exact.limit_running(1)
    decode_beside(exact)
    enter(exact, exact.send(prompt(120, 2), 5))
    exact.send(prompt(100, 3), 5)
    exact.step(3)
    waits = exact.send(prompt(80, 4), 5)
    exact.step(3)
    first = [*exact.cohort] if whom == "cohort first" else []
    for rid in [*first, *(rid for rid in exact.live if rid not in (*first, waits))]:
        exact.abort(rid)
        exact.step(len(first) and 1)
    exact.finish(waits)
    exact.settle()


def test_micro_batches_that_are_empty_look_at_the_queue_again(exact: ExactPipeline) -> None:
    """SGLang 0.5.17 marks each micro-batch full without slots, and empty ones never lose the mark."""
    exact.take_slots(10_000)
    rids = [exact.send(prompt(60, 2 + index), 5) for index in range(3)]
    exact.step(9)
    full = [batch.batch_is_full for batch in exact.scheduler.running_mbs]
    assert all(full) is MARKS_EMPTY_ONES_FULL
    exact.give_slots()
    exact.finish(*rids)
    exact.settle()


@pytest.mark.parametrize("num_ticks", range(1, 11))
def test_a_long_prompt_is_paused_while_results_of_a_chunk_are_under_way(
    exact: ExactPipeline, num_ticks: int
) -> None:
    decode_beside(exact)
    rid = exact.send(prompt(1150, 2), 5)
    enter(exact, rid)
    exact.step(NUM_LAYERS - 2 + num_ticks)
    exact.pause("retract")
    exact.finish(rid)
    exact.settle()


@pytest.mark.parametrize("num_ticks", range(4))
def test_a_long_prompt_without_a_cohort_is_paused(exact: ExactPipeline, num_ticks: int) -> None:
    rid = exact.send(prompt(1150, 2), 5)
    exact.step(1 + num_ticks)
    exact.pause("retract")
    exact.finish(rid)
    exact.settle()


def test_a_prompt_without_room_for_its_next_chunk_waits_again(exact: ExactPipeline) -> None:
    decode_beside(exact, 200)
    rid = exact.send(prompt(1150, 2), 5)
    enter(exact, rid)
    for _ in range(2 * NUM_LAYERS):
        if not exact.cohort:
            break
        exact.step()
    assert exact.scheduler.chunked_req is exact.stepped.reqs[rid]
    exact.take_slots(10_000)
    exact.step(6)
    assert [req.rid for req in exact.scheduler.waiting_queue] == [rid]
    exact.give_slots()
    exact.finish(rid)
    exact.settle()


@pytest.mark.parametrize("what", ["pause", "drop", "one leaves"])
def test_a_session_answers_as_if_its_turn_had_not_been_disturbed(exact: ExactPipeline, what: str) -> None:
    conversations = exact.conversations
    session = conversations.open()
    exact.finish(conversations.turn(session, prompt(100, 2), 4))
    decode_beside(exact, 200)
    turn = conversations.turn(session, prompt(300, 3), 6)
    other = exact.send(prompt(60, 4), 5)
    enter(exact, turn, other)
    exact.step(3)
    if what == "pause":
        exact.pause("retract")
    elif what == "drop":
        exact.loop.cohorts.drop_all(DropReason.KV_POOL_FULL)
        exact.check()
    else:
        exact.abort(other)
    exact.finish(turn)
    exact.finish(conversations.turn(session, prompt(40, 5), 6))
    exact.settle()


def test_more_groups_than_the_smallest_stage_has_layers_are_refused(exact: ExactPipeline) -> None:
    assert not exact.stepped.change({"layered_num_groups": 3})
    assert exact.stepped.change({"layered_num_groups": 2})
    decode_beside(exact)
    enter(exact, exact.send(prompt(90, 2), 5))
    exact.settle()


class Finished:
    """Hears of every cohort that has run its last group, as the metric of groups does."""

    def __init__(self) -> None:
        self.cohorts: list[Cohort] = []

    def handlers(self) -> Handlers:
        return {StepDone: self._step_done}

    def _step_done(self, event: StepDone) -> None:
        self.cohorts += [] if event.step.finished is None else [event.step.finished]


def test_groups_are_counted_when_a_cohort_has_run_them(exact: ExactPipeline) -> None:
    finished = Finished()
    exact.loop.stream.add(finished)
    running = decode_beside(exact)
    enter(exact, exact.send(prompt(90, 2), 5))
    exact.step(1)
    exact.abort(running)
    dropped = exact.send(prompt(70, 3), 5)
    exact.settle()
    assert dropped in exact.ends
    [cohort] = [cohort for cohort in finished.cohorts if cohort.request_ids == ("r1",)]
    assert cohort.is_last_group
    assert cohort.plan.num_groups < NUM_LAYERS  # nothing decoded any more: each stage's rest was one group


def test_a_prompt_is_admitted_when_the_one_before_it_gives_up(exact: ExactPipeline) -> None:
    """SGLang marks every micro-batch full for the first prompt that waits, and keeps the marks without it."""
    batches = exact.scheduler.running_mbs
    assert exact.stepped.change({"layered_prefill": 0})
    for seed in range(len(batches)):
        exact.send(prompt(10, 10 + seed), 200)
        exact.step()
    exact.step(2 * len(batches))
    exact.take_slots(2000)
    first = exact.send(prompt(900, 2), 5)
    exact.step(2 * len(batches))
    assert all(batch.batch_is_full and batch.reqs for batch in batches)
    second = exact.send(prompt(60, 3), 5)
    exact.abort(first)
    exact.step(len(batches))
    assert second not in {req.rid for req in exact.scheduler.waiting_queue}
    exact.settle()


def test_room_is_seen_that_a_long_prompt_leaves_between_two_chunks(exact: ExactPipeline) -> None:
    """SGLang ends it itself, and takes its mark `batch_is_full` from one micro-batch at most."""
    batches = exact.scheduler.running_mbs
    assert exact.stepped.change({"layered_prefill": 0, "layered_cohort_tokens": 100})
    for seed in range(len(batches)):
        exact.send(prompt(10, 10 + seed), 200)
        exact.step()
    exact.step(2 * len(batches))
    rid, waits = exact.send(prompt(1150, 2), 5), exact.send(prompt(60, 3), 5)
    exact.step()
    exact.limit_running(1)
    exact.step(len(batches))
    exact.limit_running(5)
    full = [batch.batch_is_full and batch.reqs for batch in batches]
    assert all(full) or not MARKS_EMPTY_ONES_FULL
    assert exact.scheduler.chunked_req is exact.stepped.reqs[rid]
    exact.abort(rid)
    exact.step(4 * len(batches))
    assert waits not in {req.rid for req in exact.scheduler.waiting_queue}
    exact.settle()
