"""Cohorts in flight over the stages; the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.core.cohort import Cohort
from sglang_layered.core.ledger import GroupKVLedger
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.drop import abort_requests, requeue_requests
from sglang_layered.scheduler.pipeline.tick import GroupWork


class StageCohorts:
    """Admits, moves and drops cohorts. Every rank calls every method in the same tick.

    A stage runs one cohort at a time, in the order of admission. A request is in one cohort at most: SGLang
    puts a chunk's slots into the prefix cache when it plans the next chunk, so that must wait until every
    stage has filled them.
    """

    def __init__(
        self, scheduler: Any, stages: PipelineStages, dropped: Callable[[Cohort, str], None]
    ) -> None:
        self.inflight: list[InFlightCohort] = []  # oldest, and deepest in the pipeline, first
        self.ledger = GroupKVLedger(stages.num_layers)
        self._scheduler = scheduler
        self._stages = stages
        self._dropped = dropped

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

    def drop_aborted(self) -> None:
        """Drop cohorts whose requests were all aborted."""
        for item in list(self.inflight):
            if all(req.to_finish is not None for req in item.reqs):
                self._forget(item, "aborted")
                abort_requests(self._scheduler, item.reqs)

    def requeue(self, reason: str) -> None:
        """All prompts in flight wait again; aborted ones end."""
        for item in list(self.inflight):
            self._forget(item, reason)
            aborted = [req for req in item.reqs if req.to_finish is not None]
            abort_requests(self._scheduler, aborted)
            requeue_requests(self._scheduler, [req for req in item.reqs if req not in aborted])

    def _forget(self, item: InFlightCohort, reason: str) -> None:
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
            stage,
            enters_stage=cohort.group.start == layers.start,
            leaves_stage=cohort.group.end == layers.end,
        )

    def _stage(self, cohort: Cohort) -> int:
        return self._stages.stage_of(cohort.group)
