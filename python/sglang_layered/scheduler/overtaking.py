"""Short prompts overtake the cohort in flight at a group's edge.

The cohort's rows stay parked, as between any two of its groups, while a cohort of short prompts runs; then
it goes on. It runs a group between two such turns, so at most one cohort of short prompts a group goes before
it. Short and long prompts share no cohort. What is short is told by tokens to compute, so a conversation's
next turn is short however long its history.
"""

from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.config import LayeredConfig
from sglang_layered.runner.rows import keep_rows
from sglang_layered.scheduler import stream
from sglang_layered.scheduler.asking import Asking
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.cohorts import CohortSet
from sglang_layered.upstream.hicache import forward_stream
from sglang_layered.upstream.overtake import (
    SeveralBatches,
    admit_only,
    chunks_keep_room,
    known_cached_tokens,
    look_up_cached_tokens,
    merge,
    waiting,
)

MOST_LOOKED_AT = 128  # of the queue, in every step
MOST_LOOKED_UP = 16  # in the prefix cache, in every step; the others count as long until then


class Overtaking:
    """Who goes first, and SGLang's last batch while several prompt batches are in flight."""

    def __init__(self, scheduler: Any, cohorts: CohortSet, config: LayeredConfig) -> None:
        self._scheduler = scheduler
        self._cohorts = cohorts
        self._unmerged: ScheduleBatch | None = None
        self._lookups_left = 0
        self._use(config)

    def handlers(self) -> stream.Handlers:
        """An operator may change who overtakes."""
        return {stream.SettingsChanged: lambda event: self._use(event.config)}

    def _use(self, config: LayeredConfig) -> None:
        self._most_parked = config.layered_max_parked
        self._most_tokens = config.short_tokens
        self._graphs_hold_rows = config.layered_graph_group_rows is not None
        self.is_on = self._is_needed()

    def _is_needed(self) -> bool:
        """Cohorts that are parked go on, though from now on nobody overtakes."""
        return self._most_parked > 0 or len(self._cohorts) > 1 or self._unmerged is not None

    def one_kind_waits(self, is_ordered: bool) -> AbstractContextManager[None]:
        """SGLang sees short prompts in its queue, or long ones: what the first that waits is.

        Where a policy has ordered the queue it sees what the policy lets it see.
        """
        queue, chunked = self._scheduler.waiting_queue, self._scheduler.chunked_req
        may_admit = chunked is not None or not self._scheduler.running_batch.batch_is_full
        if is_ordered or not (self.is_on and queue and may_admit):
            return nullcontext()
        self._lookups_left = MOST_LOOKED_UP
        is_short = chunked is None and self._is_short(queue[0])
        return waiting(self._scheduler, [req for req in queue if self._is_short(req) == is_short])

    def is_long(self, batch: ScheduleBatch) -> bool:
        """True for prompts that others may overtake; they are cut though nobody decodes."""
        return self.is_on and bool(batch.extend_num_tokens > self._most_tokens)

    def step_begins(self) -> None:
        """What has overtaken and has run all layers decodes from now on, and who was overtaken goes on."""
        if self._unmerged is None:
            self.is_on = self._is_needed()
            return
        batch, self._unmerged = self._unmerged, None
        merge(self._scheduler, batch)
        self._cohorts.inflight[-1].has_run = False
        self.note_last()

    def completed(self, batch: ScheduleBatch) -> None:
        """A cohort was launched in its last group while others are parked."""
        self._unmerged = batch
        self.note_last()

    def note_last(self) -> None:
        """SGLang finds all prompts in flight in its last batch, with those that are still to be merged.

        When none is in flight any more, it merges what is left.
        """
        batches = [item.batch for item in self._cohorts.inflight]
        if not batches:
            self._scheduler.last_batch, self._unmerged = self._unmerged, None
            return
        if self._unmerged is not None:
            batches.append(self._unmerged)
        self._scheduler.last_batch = batches[0] if len(batches) == 1 else SeveralBatches(batches)

    def short_ones(self, asking: Asking | None = None) -> ScheduleBatch | None:
        """Prompts that go before the cohort in flight, with their slots; None: nobody does.

        Short ones, or those that a policy names which `asking` can ask.
        """
        is_asked = asking is not None and asking.preempts
        scheduler, inflight = self._scheduler, self._cohorts.inflight
        if scheduler.running_batch.batch_is_full or not scheduler.waiting_queue:
            return None
        if len(inflight) > self._most_parked or not self._may_be_overtaken(inflight[-1], is_asked):
            return None
        chosen = asking.overtaking(inflight) if asking is not None and is_asked else self._chosen()
        if not chosen or not chunks_keep_room(scheduler, chosen):
            return None
        batch = admit_only(scheduler, chosen, [req for item in inflight for req in item.reqs])
        if batch is not None:
            # It may start from KV whose loads from the host only the cohort in flight waits for.
            self._cohorts.wait_for_loads()
            self._park(inflight[-1])
            if asking is not None:
                asking.admitted(batch)
        return batch

    def _park(self, item: InFlightCohort) -> None:
        """Graphs of a group's layers leave a cohort's rows in their own memory, where the next one's come."""
        item.num_overtaken += 1
        if self._graphs_hold_rows and item.parked is not None:
            with forward_stream(self._scheduler):
                item.parked = keep_rows(item.parked, torch.clone)

    def _may_be_overtaken(self, item: InFlightCohort, is_asked: bool) -> bool:
        is_between = item.has_run and not item.cohort.is_last_group and not item.to_encode
        return is_between and (is_asked or self.is_long(item.batch))

    def _chosen(self) -> list[Any]:
        """Short prompts in the queue's order, together no more than one may have."""
        self._lookups_left = MOST_LOOKED_UP
        chosen: list[Any] = []
        left, page = self._most_tokens, self._scheduler.page_size
        for req in islice(self._scheduler.waiting_queue, MOST_LOOKED_AT):
            if self._is_short(req):
                left -= -(-self._to_compute(req) // page) * page
                if chosen and left < 0:
                    break
                chosen.append(req)
        return chosen

    def _is_short(self, req: Any) -> bool:
        return req.multimodal_inputs is None and self._to_compute(req) <= self._most_tokens

    def _to_compute(self, req: Any) -> int:
        length: int = req.seqlen
        if length <= self._most_tokens:
            return length
        cached = known_cached_tokens(req)
        if cached is None:
            if not self._lookups_left:
                return length
            self._lookups_left -= 1
            cached = look_up_cached_tokens(self._scheduler, req)
        return length - cached
