"""The cohorts in flight: admitted, advanced group by group, cut, finished or dropped."""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.core.cohort import Cohort
from sglang_layered.core.events import DropReason
from sglang_layered.core.ledger import GroupKVLedger
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.cut import cut_cohort
from sglang_layered.scheduler.room import abort_requests, requeue_requests, room_came_free
from sglang_layered.scheduler.stream import Dropped, EventStream, Left

logger = logging.getLogger(__name__)


class CohortSet:
    """At most one cohort a pipeline stage; without stages there is one at most.

    Every rank calls every method in the same step. A stage runs one cohort at a time, in the order of
    admission. A request is in one cohort at most: SGLang puts a chunk's slots into the prefix cache when it
    plans the next chunk, so that must wait until every stage has filled them.
    """

    def __init__(self, scheduler: Any, stages: PipelineStages, stream: EventStream) -> None:
        self.inflight: list[InFlightCohort] = []  # oldest, and deepest in the pipeline, first
        self.ledger = GroupKVLedger()
        self.stages = stages
        self._scheduler = scheduler
        self._stream = stream

    def __len__(self) -> int:
        return len(self.inflight)

    @property
    def oldest(self) -> InFlightCohort | None:
        """The cohort that was admitted first; the only one without stages."""
        return self.inflight[0] if self.inflight else None

    @property
    def has_room(self) -> bool:
        """True when no cohort has a group left on the first stage, and there are fewer than stages."""
        free = all(self.stages.stage_of(item.cohort.group) > 0 for item in self.inflight)
        return free and len(self.inflight) < len(self.stages.layers)

    def admit(self, batch: ScheduleBatch, plan: LayerGroupPlan) -> InFlightCohort:
        """A prompt batch that SGLang chose enters the first stage."""
        cohort = Cohort(plan, tuple(req.rid for req in batch.reqs))
        slots = batch.out_cache_loc.split(list(batch.extend_lens))
        for request_id, part in zip(cohort.request_ids, slots, strict=True):
            self.ledger.admit(request_id, part)
        self.inflight.append(InFlightCohort(cohort, batch))
        return self.inflight[-1]

    def finish_in_one_step(self) -> None:
        """Nothing decodes, so nobody waits for a step to end: what is left of each stage is one group."""
        for item in self.inflight:
            cohort = item.cohort
            plan = self.stages.rest_at_once(cohort.plan, cohort.next_group)
            item.cohort = Cohort(plan, cohort.request_ids, cohort.next_group)

    def advance(self, item: InFlightCohort) -> None:
        """The cohort's next group was launched; after its last one it is in flight no more."""
        item.cohort = item.cohort.advance()
        if item.cohort.is_done:
            self.ledger.complete(item.cohort.request_ids)
            self.inflight.remove(item)

    def let_aborted_leave(self) -> None:
        """Requests that were aborted leave at the edge of this step, and their slots are free.

        The others of their cohort go on; a cohort without others is dropped. With stages the rows of a cohort
        lie parked on the rank of its stage between two ticks, never on the way, so every rank cuts what it
        has of it. No result may be pending: its forward may still write the slots.
        """
        for item in list(self.inflight):
            aborted = item.aborted
            if len(aborted) == len(item.reqs):
                self._drop(item, DropReason.ABORTED)
            elif aborted:
                before = item.cohort
                cut_cohort(self._scheduler, item, aborted)
                abort_requests(self._scheduler, aborted)
                self.ledger.released(req.rid for req in aborted)
                self._stream.emit(Left(before, aborted))
                self.room_came_free()

    def drop_all(self, reason: DropReason) -> None:
        """All prompts in flight wait again; aborted ones end. No result may be pending."""
        for item in list(self.inflight):
            self._drop(item, reason)

    def room_came_free(self) -> None:
        """What leaves makes room in every micro-batch: they share the request slots and the KV pool."""
        scheduler = self._scheduler
        for running in scheduler.running_mbs if scheduler.ps.pp_size > 1 else [scheduler.running_batch]:
            room_came_free(running)

    def _drop(self, item: InFlightCohort, reason: DropReason) -> None:
        cohort, aborted = item.cohort, item.aborted
        logger.info(
            "Cohort of %d requests dropped at group %d of %d: %s",
            len(cohort.request_ids),
            cohort.next_group,
            cohort.plan.num_groups,
            reason,
        )
        abort_requests(self._scheduler, aborted)
        requeue_requests(self._scheduler, [req for req in item.reqs if req not in aborted])
        # Only now: until their slots are back in the pool, nothing may keep them.
        self.ledger.released(cohort.request_ids)
        self.inflight.remove(item)
        self.room_came_free()
        self._stream.emit(Dropped(cohort, reason))
