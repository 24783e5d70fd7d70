"""The one cohort in flight: admitted, advanced group by group, finished or dropped; the ledger follows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.core.cohort import Cohort
from sglang_layered.core.events import DropReason
from sglang_layered.core.ledger import GroupKVLedger
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.cut import cut_cohort
from sglang_layered.scheduler.drop import abort_requests, requeue_requests, room_came_free

logger = logging.getLogger(__name__)


class CohortKeeper:
    """Keeps `scheduler.last_batch` the in-flight cohort's batch, and the ledger in step with it.

    `dropped` is told of every cohort that leaves before its last group, with the reason. No result may be
    pending when a cohort is dropped.
    """

    def __init__(
        self, scheduler: Any, num_layers: int, dropped: Callable[[Cohort, DropReason], None]
    ) -> None:
        self.ledger = GroupKVLedger(num_layers)
        self.inflight: InFlightCohort | None = None
        self._scheduler = scheduler
        self._dropped = dropped

    def admit(self, batch: ScheduleBatch, plan: LayerGroupPlan) -> InFlightCohort:
        """A prompt batch that SGLang chose becomes the cohort in flight."""
        cohort = Cohort(plan, tuple(req.rid for req in batch.reqs))
        self.inflight = InFlightCohort(cohort, batch)
        self._scheduler.last_batch = batch
        slots = batch.out_cache_loc.split(list(batch.extend_lens))
        for request_id, part in zip(cohort.request_ids, slots, strict=True):
            self.ledger.admit(request_id, part)
        return self.inflight

    def advance(self) -> None:
        """The cohort's next group was launched; after its last one nothing is in flight."""
        inflight = self._present()
        cohort = inflight.cohort
        self.ledger.group_done(cohort.request_ids, cohort.group)
        inflight.cohort = cohort.advance()
        if inflight.cohort.is_done:
            self.ledger.complete(cohort.request_ids)
            self.inflight = None

    def remove_aborted(self) -> list[Any]:
        """Requests that were aborted leave at this group's edge, and their slots are free; gives them.

        The others go on. When all were aborted the cohort is to be dropped instead.
        """
        inflight = self._present()
        aborted = inflight.aborted
        if aborted:
            self.ledger.drop(req.rid for req in aborted)
            cut_cohort(self._scheduler, inflight, aborted)
            abort_requests(self._scheduler, aborted)
            room_came_free(self._scheduler.running_batch)
        return aborted

    def drop(self, reason: DropReason) -> None:
        """Give the cohort's slots back; its aborted requests end, the others wait again."""
        inflight = self.forget(reason)
        aborted = inflight.aborted
        abort_requests(self._scheduler, aborted)
        requeue_requests(self._scheduler, [req for req in inflight.reqs if req not in aborted])
        room_came_free(self._scheduler.running_batch)
        self._scheduler.last_batch = None

    def leave_to_pause(self) -> None:
        """SGLang is about to retract every request: leave it those that it retracts rightly.

        It would queue an aborted one again, and save a streaming session's half-filled KV.
        """
        inflight = self.forget(DropReason.PAUSED)
        aborted = inflight.aborted
        in_sessions = [req for req in inflight.reqs if req.session is not None and req not in aborted]
        inflight.batch.reqs = [req for req in inflight.reqs if req not in (*in_sessions, *aborted)]
        abort_requests(self._scheduler, aborted)
        requeue_requests(self._scheduler, in_sessions)

    def forget(self, reason: DropReason) -> InFlightCohort:
        """Let go of the cohort; what becomes of its requests and slots is the caller's business."""
        inflight = self._present()
        cohort = inflight.cohort
        logger.info(
            "Cohort of %d requests dropped at group %d of %d: %s",
            len(cohort.request_ids),
            cohort.next_group,
            cohort.plan.num_groups,
            reason,
        )
        self.ledger.drop(cohort.request_ids)
        self.inflight = None
        self._dropped(cohort, reason)
        return inflight

    def reset_ledger(self) -> None:
        """After a broken invariant the ledger knows the cohort in flight again, and nothing else."""
        self.ledger.reset(() if self.inflight is None else self.inflight.cohort.request_ids)

    def _present(self) -> InFlightCohort:
        if self.inflight is None:
            raise AssertionError("no cohort is in flight")
        return self.inflight
