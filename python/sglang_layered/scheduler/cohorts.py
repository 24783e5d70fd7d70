"""The cohorts in flight: admitted, advanced group by group, cut, finished or dropped."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.core.cohort import Cohort
from sglang_layered.core.events import DropReason
from sglang_layered.core.ledger import GroupKVLedger
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.runner.rows import keep_rows
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.stream import Dropped, EventStream, Left
from sglang_layered.upstream.hicache import forward_stream, wait_for_loads
from sglang_layered.upstream.recurrent import still_tracked
from sglang_layered.upstream.releases import serving
from sglang_layered.upstream.room import abort_requests, requeue_requests, room_came_free

logger = logging.getLogger(__name__)


class CohortSet:
    """At most one cohort a pipeline stage; without stages one runs. Others may be parked (`Overtaking`).

    Every rank calls every method in the same step. A stage runs one cohort at a time. A request is in one
    cohort at most: SGLang puts a chunk's slots into the prefix cache when it plans the next chunk, so that
    must wait until every stage has filled them.
    """

    def __init__(self, scheduler: Any, stages: PipelineStages, stream: EventStream) -> None:
        # Oldest first; parked ones too.
        self.inflight: list[InFlightCohort] = []
        self.ledger = GroupKVLedger()
        self.stages = stages
        self._scheduler = scheduler
        self._stream = stream

    def __len__(self) -> int:
        return len(self.inflight)

    @property
    def newest(self) -> InFlightCohort | None:
        """The cohort that was admitted last; without stages the one that runs."""
        return self.inflight[-1] if self.inflight else None

    @property
    def leaving(self) -> list[Any]:
        """Requests that were aborted and can leave now."""
        return [req for item in self.inflight for req in item.leaving]

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
        item.cohort, item.has_run = item.cohort.advance(), True
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
            aborted = item.leaving
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

    def wait_for_loads(self) -> None:
        """Let what is launched next wait for all layers that are loaded for cohorts in flight.

        Results are a step late: SGLang puts a prompt into the prefix cache when the next one may be on its
        way. Where that one loads the same prefix from host memory, the first gives its own slots of it back
        and goes on from those that are loaded: it decodes in all layers, the cohort is in its first ones.
        Upstream: `RadixCache.cache_unfinished_req`.
        """
        for item in self.inflight:
            wait_for_loads(self._scheduler, item.batch)

    def room_came_free(self) -> None:
        """What leaves makes room in every micro-batch: they share the request slots and the KV pool."""
        scheduler = self._scheduler
        has_stages = serving.ranks_of(scheduler).pp_size > 1
        for running in scheduler.running_mbs if has_stages else [scheduler.running_batch]:
            room_came_free(running)

    def _drop(self, item: InFlightCohort, reason: DropReason) -> None:
        cohort, aborted = item.cohort, item.aborted
        where = (len(item.reqs), cohort.next_group, cohort.plan.num_groups)
        logger.info("Cohort of %d requests dropped at group %d of %d: %s", *where, reason)
        wait_for_loads(self._scheduler, item.batch)
        abort_requests(self._scheduler, aborted)
        requeue_requests(self._scheduler, [req for req in item.reqs if req not in aborted])
        # Only now: until their slots are back in the pool, nothing may keep them.
        self.ledger.released(cohort.request_ids)
        self.inflight.remove(item)
        self.room_came_free()
        self._stream.emit(Dropped(cohort, reason))


def cut_cohort(scheduler: Any, inflight: InFlightCohort, leaving: Sequence[Any]) -> None:
    """Leave these requests' rows out from the next group on; some other request stays.

    The ForwardBatch is made anew at the next group, and with it the prompt's attention plan. Parked rows and
    input tokens belong to the forward stream and are cut in its order, all else on the scheduler's.
    """
    keep = [index for index, req in enumerate(inflight.reqs) if req not in leaving]
    rows = _part_of(inflight.batch.extend_lens, keep)
    cut_batch(inflight.batch, keep, forward_stream(scheduler))
    if inflight.parked is not None:
        with forward_stream(scheduler):
            inflight.parked = keep_rows(inflight.parked, rows)
    inflight.forward = None
    inflight.cohort = inflight.cohort.without(req.rid for req in leaving)


def cut_batch(batch: ScheduleBatch, keep: list[int], forward_stream: AbstractContextManager[Any]) -> None:
    """Keep the requests at these indices of a prompt batch that has been launched.

    SGLang's own filter is made for decode batches: it takes one row a request and drops what is kept per
    token, so that is cut here. Upstream: `ScheduleBatch.filter_batch`, `ScheduleBatch.prepare_for_extend`.
    """
    rows = _part_of(batch.extend_lens, keep)
    tokens, slots, logprob_ids = batch.input_ids, batch.out_cache_loc, batch.extend_input_logprob_token_ids
    if logprob_ids is not None:
        pairs = zip(batch.extend_lens, batch.extend_logprob_start_lens, strict=True)
        logprob_ids = _part_of([length - start for length, start in pairs], keep)(logprob_ids)
    batch.input_ids = None
    with still_tracked(batch, keep):
        batch.filter_batch(keep_indices=keep)
    batch.out_cache_loc = rows(slots)
    if batch.prefill_input_ids_cpu is not None:  # a pipeline stage that the prompts have not come to
        batch.prefill_input_ids_cpu = rows(batch.prefill_input_ids_cpu)
    if tokens is not None:
        with forward_stream:
            batch.input_ids = rows(tokens)
    for name in ("prefix_lens", "extend_lens", "extend_logprob_start_lens"):
        values = getattr(batch, name)
        setattr(batch, name, [values[index] for index in keep])
    batch.extend_num_tokens = sum(batch.extend_lens)
    batch.extend_input_logprob_token_ids = logprob_ids if batch.return_logprob else None
    batch.input_embeds = batch.replace_embeds = batch.replace_positions = None  # layer 0 has had them
    if batch.chunked_req not in batch.reqs:
        batch.chunked_req = batch.chunked_req_next_prompt_token = None
        batch.contains_last_prefill_chunk = True


def _part_of(lens: Sequence[int], keep: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What takes the rows of the kept requests out of a tensor that has so many rows for each request."""
    ends = list(accumulate(lens))
    parts = [slice(ends[index] - lens[index], ends[index]) for index in keep]
    return lambda tensor: torch.cat([tensor[part] for part in parts])
