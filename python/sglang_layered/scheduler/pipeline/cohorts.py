"""Cohorts in flight over the stages; the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.core.cohort import Cohort
from sglang_layered.core.events import DropReason
from sglang_layered.core.ledger import GroupKVLedger
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.cut import cut_cohort
from sglang_layered.scheduler.drop import abort_requests, requeue_requests, room_came_free
from sglang_layered.scheduler.pipeline.tick import GroupWork


class StageCohorts:
    """Admits, moves and drops cohorts. Every rank calls every method in the same tick.

    A stage runs one cohort at a time, in the order of admission. A request is in one cohort at most: SGLang
    puts a chunk's slots into the prefix cache when it plans the next chunk, so that must wait until every
    stage has filled them. `dropped` and `left` are told of cohorts and of single requests that leave before
    the last group: the cohort as it was, and the reason or the requests.
    """

    def __init__(
        self,
        scheduler: Any,
        stages: PipelineStages,
        dropped: Callable[[Cohort, DropReason], None],
        left: Callable[[Cohort, list[Any]], None],
    ) -> None:
        self.inflight: list[InFlightCohort] = []  # oldest, and deepest in the pipeline, first
        self.ledger = GroupKVLedger(stages.num_layers)
        self._scheduler = scheduler
        self._stages = stages
        self._dropped = dropped
        self._left = left

    def __len__(self) -> int:
        return len(self.inflight)

    @property
    def has_room(self) -> bool:
        """True when no cohort has a group left on the first stage, and there are fewer than stages."""
        free = all(self._stage(item.cohort) > 0 for item in self.inflight)
        return free and len(self.inflight) < len(self._stages.layers)

    def admit(self, batch: ScheduleBatch, plan: LayerGroupPlan) -> InFlightCohort:
        """A prompt batch that SGLang chose enters the first stage."""
        cohort = Cohort(plan, tuple(req.rid for req in batch.reqs))
        slots = batch.out_cache_loc.split(list(batch.extend_lens))
        for request_id, part in zip(cohort.request_ids, slots, strict=True):
            self.ledger.admit(request_id, part)
        self.inflight.append(InFlightCohort(cohort, batch))
        return self.inflight[-1]

    def hurry(self) -> None:
        """Nothing decodes: what is left of each stage goes as one group."""
        for item in self.inflight:
            cohort = item.cohort
            plan = self._stages.rest_at_once(cohort.plan, cohort.next_group)
            item.cohort = Cohort(plan, cohort.request_ids, cohort.next_group)

    def works(self) -> tuple[GroupWork, ...]:
        """The next group of the oldest cohort on each stage; others that have come there wait."""
        by_stage: dict[int, GroupWork] = {}
        for item in self.inflight:
            work = self._work(item)
            by_stage.setdefault(work.stage, work)
        return tuple(by_stage.values())

    def advance(self, works: tuple[GroupWork, ...]) -> None:
        """These groups were launched."""
        for work in works:
            self.ledger.group_done(work.cohort.request_ids, work.group)
            work.inflight.cohort = work.cohort.advance()
            if work.inflight.cohort.is_done:
                self.ledger.complete(work.cohort.request_ids)
                self.inflight.remove(work.inflight)

    def let_aborted_leave(self) -> None:
        """Requests that were aborted leave at the edge of this tick, and their slots are free.

        The others of their cohort go on; a cohort without others is dropped. The rows of a cohort lie parked
        on the rank of its stage between two ticks, never on the way, so every rank cuts what it has of it.
        """
        for item in list(self.inflight):
            aborted = item.aborted
            if not aborted:
                continue
            if len(aborted) == len(item.reqs):
                self._forget(item, DropReason.ABORTED)
            else:
                before = item.cohort
                self.ledger.drop(req.rid for req in aborted)
                cut_cohort(self._scheduler, item, aborted)
                self._left(before, aborted)
            abort_requests(self._scheduler, aborted)
            self.room_came_free()

    def requeue(self, reason: DropReason) -> None:
        """All prompts in flight wait again; aborted ones end."""
        for item in list(self.inflight):
            self._forget(item, reason)
            aborted = item.aborted
            abort_requests(self._scheduler, aborted)
            requeue_requests(self._scheduler, [req for req in item.reqs if req not in aborted])
            self.room_came_free()

    def room_came_free(self) -> None:
        """What leaves makes room in every micro-batch: they share the request slots and the KV pool."""
        for running in self._scheduler.running_mbs:
            room_came_free(running)

    def _forget(self, item: InFlightCohort, reason: DropReason) -> None:
        self.ledger.drop(item.cohort.request_ids)
        self.inflight.remove(item)
        self._dropped(item.cohort, reason)

    def _work(self, item: InFlightCohort) -> GroupWork:
        cohort = item.cohort
        stage = self._stage(cohort)
        layers = self._stages.layers[stage]
        return GroupWork(
            item,
            cohort,
            tuple(zip(item.reqs, item.batch.extend_lens, strict=True)),
            stage,
            enters_stage=cohort.group.start == layers.start,
            leaves_stage=cohort.group.end == layers.end,
        )

    def _stage(self, cohort: Cohort) -> int:
        return self._stages.stage_of(cohort.group)
