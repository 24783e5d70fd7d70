"""Cohorts over pipeline stages: one a stage, in order, and nothing left behind when one is dropped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from release_differences import ranks_of_stand_ins as ranks_of_stand_ins
from sglang_layered.core.events import DropReason
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.scheduler import cohorts as module
from sglang_layered.scheduler.cohorts import CohortSet
from sglang_layered.scheduler.stream import Dropped, EventStream, Handlers, Left
from sglang_layered.scheduler.tick import PipelineTick, works_of

STAGES = PipelineStages((0, 4, 8))


def batch(*names: str) -> Any:
    """A prompt batch of two-token prompts."""
    reqs = [SimpleNamespace(rid=name, to_finish=None) for name in names]
    slots = torch.arange(2 * len(reqs))
    return SimpleNamespace(reqs=reqs, out_cache_loc=slots, extend_lens=[2] * len(reqs), return_logprob=False)


def plan(first: int, second: int) -> LayerGroupPlan:
    """So many groups on each of the two stages."""
    return STAGES.joined([LayerGroupPlan.even(4, first), LayerGroupPlan.even(4, second)])


class Kept:
    """What the cohorts told: drops with their reasons, requests that left, that ended and that wait again."""

    def __init__(self) -> None:
        self.left: list[tuple[tuple[str, ...], list[str]]] = []
        self.drops: list[tuple[tuple[str, ...], str]] = []
        self.ended: list[str] = []
        self.waiting: list[str] = []

    def handlers(self) -> Handlers:
        return {Left: self._left, Dropped: self._dropped}

    def _left(self, event: Left) -> None:
        self.left.append((event.cohort.request_ids, [req.rid for req in event.reqs]))

    def _dropped(self, event: Dropped) -> None:
        self.drops.append((event.cohort.request_ids, event.reason))


def cut(_: Any, item: Any, leaving: Any) -> None:
    """Stands where the rows are cut; here there are none."""
    item.cohort = item.cohort.without(req.rid for req in leaving)
    item.batch.reqs = [req for req in item.batch.reqs if req not in leaving]
    item.batch.extend_lens = [2] * len(item.batch.reqs)


@pytest.fixture
def running() -> list[Any]:
    """The running batch of each of two micro-batches, both marked full."""
    return [SimpleNamespace(batch_is_full=True) for _ in range(2)]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, ranks_of_stand_ins: None) -> Kept:
    kept = Kept()
    monkeypatch.setattr(module, "abort_requests", lambda _, reqs: kept.ended.extend(req.rid for req in reqs))
    monkeypatch.setattr(module, "cut_cohort", cut)
    monkeypatch.setattr(module, "wait_for_loads", lambda _, batch: None)
    monkeypatch.setattr(
        module, "requeue_requests", lambda _, reqs: kept.waiting.extend(req.rid for req in reqs)
    )
    return kept


@pytest.fixture
def cohorts(kept: Kept, running: list[Any]) -> CohortSet:
    stream = EventStream()
    stream.add(kept)
    return CohortSet(SimpleNamespace(running_mbs=running, ps=SimpleNamespace(pp_size=2)), STAGES, stream)


def step(cohorts: CohortSet) -> dict[int, tuple[str, tuple[int, int]]]:
    """Run a tick; what each stage ran: the cohort's first request and its layers."""
    works = works_of(cohorts.inflight, STAGES)
    for work in works:
        cohorts.advance(work.inflight)
    return {
        work.stage: (work.cohort.request_ids[0], (work.cohort.group.start, work.cohort.group.end))
        for work in works
    }


def test_a_cohort_goes_group_by_group_and_stage_by_stage(cohorts: CohortSet) -> None:
    cohorts.admit(batch("a"), plan(2, 1))
    assert not cohorts.has_room
    assert [step(cohorts) for _ in range(3)] == [{0: ("a", (0, 2))}, {0: ("a", (2, 4))}, {1: ("a", (4, 8))}]
    assert len(cohorts) == 0
    assert len(cohorts.ledger) == 0


def test_a_second_cohort_enters_when_the_first_stage_is_free_and_waits_where_the_second_is_not(
    cohorts: CohortSet,
) -> None:
    cohorts.admit(batch("slow"), plan(1, 4))
    step(cohorts)
    assert cohorts.has_room
    cohorts.admit(batch("quick"), plan(1, 1))
    assert step(cohorts) == {0: ("quick", (0, 4)), 1: ("slow", (4, 5))}
    assert not cohorts.has_room  # the first stage is free, but as many cohorts as stages are in flight
    seen = [step(cohorts) for _ in range(4)]
    assert seen[:3] == [{1: ("slow", (layer, layer + 1))} for layer in (5, 6, 7)]
    assert seen[3] == {1: ("quick", (4, 8))}


def test_the_tick_that_completes_a_cohort_says_so_and_names_everybody(cohorts: CohortSet) -> None:
    first = cohorts.admit(batch("a", "b"), plan(1, 1))
    step(cohorts)
    cohorts.admit(batch("c"), plan(1, 1))
    tick = PipelineTick(None, works_of(cohorts.inflight, STAGES), tuple(cohorts.inflight))
    assert tick.completed is first
    assert [req.rid for req in tick.reqs] == ["a", "b", "c"]
    assert tick.batches == [first.batch]


def test_aborted_requests_leave_their_cohort_and_the_last_one_ends_it(
    cohorts: CohortSet, kept: Kept, running: list[Any]
) -> None:
    item = cohorts.admit(batch("a", "b"), plan(2, 2))
    step(cohorts)
    cohorts.let_aborted_leave()
    assert all(batch.batch_is_full for batch in running)
    item.reqs[0].to_finish = "abort"
    cohorts.let_aborted_leave()
    assert item.cohort.request_ids == ("b",)
    assert [rid for rid, _ in cohorts.ledger] == ["b"]
    assert (kept.left, kept.drops, kept.ended) == ([(("a", "b"), ["a"])], [], ["a"])
    assert not any(batch.batch_is_full for batch in running)
    assert step(cohorts) == {0: ("b", (2, 4))}
    item.reqs[0].to_finish = "abort"
    cohorts.let_aborted_leave()
    assert (len(cohorts), len(cohorts.ledger)) == (0, 0)
    assert (kept.drops, kept.ended) == ([(("b",), "aborted")], ["a", "b"])


def test_requeued_prompts_wait_again_and_aborted_ones_end(
    cohorts: CohortSet, kept: Kept, running: list[Any]
) -> None:
    cohorts.admit(batch("a"), plan(1, 2))
    step(cohorts)
    cohorts.admit(batch("b", "c"), plan(2, 2))
    cohorts.inflight[1].reqs[0].to_finish = "abort"
    cohorts.drop_all(DropReason.KV_POOL_FULL)
    assert (kept.ended, kept.waiting) == (["b"], ["a", "c"])
    assert [reason for _, reason in kept.drops] == ["KV pool full"] * 2
    assert not any(batch.batch_is_full for batch in running)
    assert (len(cohorts), len(cohorts.ledger)) == (0, 0)


def test_in_a_hurry_the_rest_of_each_stage_is_one_group(cohorts: CohortSet) -> None:
    cohorts.admit(batch("a"), plan(4, 4))
    step(cohorts)
    cohorts.finish_in_one_step()
    assert [step(cohorts) for _ in range(2)] == [{0: ("a", (1, 4))}, {1: ("a", (4, 8))}]


def test_the_most_urgent_goes_first_on_a_stage_one_between_two_groups_of_the_oldest(
    cohorts: CohortSet,
) -> None:
    cohorts.admit(batch("long"), plan(4, 4)).urgency = (0, True)
    for name in ("a", "b"):
        cohorts.admit(batch(name), plan(1, 4))
    seen = []
    for _ in range(4):
        works = works_of(cohorts.inflight, STAGES)
        for work in works:
            if work.overtakes is not None:
                work.overtakes.has_run = False
            cohorts.advance(work.inflight)
        seen.append([work.cohort.request_ids[0] for work in works if work.stage == 0])
    assert seen == [["a"], ["long"], ["b"], ["long"]]
