"""Short prompts overtake the cohort in flight at a group's edge.

The cohort's rows stay parked, as between any two of its groups, while a cohort of short prompts runs; then
it goes on. It runs a group between two such turns, so at most one cohort of short prompts a group goes before
it. Short and long prompts share no cohort. What is short is told by tokens to compute, so a conversation's
next turn is short however long its history.

With priority scheduling a prompt goes before a cohort of a lower priority whatever its length, and nobody
goes before one of a higher priority, in flight or in the queue.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from math import inf
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
    first_to_go,
    known_cached_tokens,
    look_up_cached_tokens,
    looks_at_queue,
    merge,
    precedence,
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

    def one_kind_waits(self, is_ordered: bool = False) -> AbstractContextManager[None]:
        """SGLang sees short prompts in its queue, or long ones: what the first that waits is.

        None of them goes before one of the other kind that has a higher priority. Where a policy has ordered
        the queue SGLang sees what the policy lets it see.
        """
        scheduler = self._scheduler
        queue, chunked = scheduler.waiting_queue, scheduler.chunked_req
        may_admit = chunked is not None or looks_at_queue(scheduler)
        if is_ordered or not (self.is_on and queue and may_admit):
            return nullcontext()
        self._lookups_left = MOST_LOOKED_UP
        [first] = first_to_go(scheduler, 1)
        is_short = chunked is None and self._is_short(first)
        shown: list[Any] = []
        others: list[Any] = []
        for req in queue:
            (shown if self._is_short(req) == is_short else others).append(req)
        last = min((precedence(scheduler, req) for req in others), default=inf)
        return waiting(scheduler, [req for req in shown if precedence(scheduler, req) <= last])

    def is_long(self, batch: ScheduleBatch) -> bool:
        """True for prompts that others may overtake; they are cut though nobody decodes."""
        is_chunk = batch.chunked_req is not None  # others of it come after
        return self.is_on and (is_chunk or bool(batch.extend_num_tokens > self._most_tokens))

    def step_begins(self) -> None:
        """What has overtaken and has run all layers decodes from now on, and who was overtaken goes on."""
        if self._unmerged is None:
            self.is_on = self._is_needed()
            return
        batch, self._unmerged = self._unmerged, None
        merge(self._scheduler, batch)
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

        Short ones or more urgent ones, or those that a policy names which `asking` can ask.
        """
        is_asked = asking is not None and asking.preempts
        scheduler, inflight = self._scheduler, self._cohorts.inflight
        if not scheduler.waiting_queue or not looks_at_queue(scheduler):
            return None
        if len(inflight) > self._most_parked or not self._may_be_overtaken(inflight[-1], is_asked):
            return None
        reqs = inflight[-1].reqs
        chosen = asking.overtaking(inflight) if asking is not None and is_asked else self._chosen(reqs)
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
        item.has_run = False  # before it has, nobody else overtakes it, also where these are aborted
        if self._graphs_hold_rows and item.parked is not None:
            with forward_stream(self._scheduler):
                item.parked = keep_rows(item.parked, torch.clone)

    @property
    def _most_long_tokens(self) -> float:
        """What a cohort may have: no prompt that overtakes is cut into chunks."""
        return self._scheduler.chunked_prefill_size or inf

    def _may_be_overtaken(self, item: InFlightCohort, is_asked: bool) -> bool:
        """Before any group, the last too: to a policy that cuts step by step all that is left is one."""
        return item.has_run and not item.to_encode and (is_asked or self.is_long(item.batch))

    def _chosen(self, overtaken: Sequence[Any]) -> list[Any]:
        """Who goes before these, in the queue's order; together no more than one cohort may have."""
        scheduler, self._lookups_left = self._scheduler, MOST_LOOKED_UP
        limit = min(precedence(scheduler, req) for req in overtaken)
        chosen: list[Any] = []
        are_short, left, page = True, 0.0, scheduler.page_size
        for req in first_to_go(scheduler, MOST_LOOKED_AT):
            place, is_short = precedence(scheduler, req), self._is_short(req)
            if place == limit and not is_short:
                continue
            if known_cached_tokens(req):  # it may have been evicted since
                if not self._lookups_left:
                    break
                self._lookups_left -= 1
                look_up_cached_tokens(scheduler, req)
                is_short = self._is_short(req)
                if place == limit and not is_short:
                    continue
            if not chosen:
                are_short, left = is_short, self._most_tokens if is_short else self._most_long_tokens
            left -= -(-self._to_compute(req) // page) * page
            fits = left >= 0 or (is_short and not chosen)
            if place > limit or is_short != are_short or req.multimodal_inputs is not None or not fits:
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
