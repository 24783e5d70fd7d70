"""How SGLang admits some of the prompts that wait while others are in flight, and merges what has overtaken.

SGLang has one prompt batch in flight, its last batch, and one prompt between two chunks. Upstream:
srt/managers/scheduler.py `get_next_batch_to_run`, `_get_new_batch_prefill_raw`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from heapq import nsmallest
from itertools import chain, islice
from math import inf
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.observability.metrics_collector import QueueCount

from sglang_layered.upstream.releases import requests
from sglang_layered.upstream.room import filter_running, preempted_wait, room_came_free, somebody_decodes


class SeveralBatches:
    """Stands where SGLang keeps its last batch while several prompt batches are in flight or to be merged.

    It answers what aborts, idle and leak checks, load reports and timeouts ask of one.
    """

    forward_mode = ForwardMode.EXTEND

    def __init__(self, batches: Iterable[ScheduleBatch]) -> None:
        self._batches = tuple(batches)

    @property
    def reqs(self) -> list[Any]:
        """The requests of all."""
        return list(chain.from_iterable(batch.reqs for batch in self._batches))

    def is_empty(self) -> bool:
        """False: somebody is in flight."""
        return False


class _Room(ScheduleBatch):
    """The running batch as SGLang reserves room beside it: prompts in flight are counted, not preempted.

    SGLang preempts requests of a lower priority for room; here they leave the running batch itself.
    """

    def __init__(self, running: ScheduleBatch, in_flight: Sequence[Any]) -> None:
        self._running, self._in_flight = running, in_flight
        super().__init__(reqs=[*running.reqs, *in_flight], batch_is_full=running.batch_is_full)

    def release_req(self, *args: Any, **kwargs: Any) -> Any:
        """Its slots are free."""
        return self._running.release_req(*args, **kwargs)

    def filter_batch(self, *args: Any, keep_indices: Sequence[int], **kwargs: Any) -> None:
        """Others than these run no longer."""
        kept = [index for index in keep_indices if index < len(self._running.reqs)]
        self._running.filter_batch(*args, keep_indices=kept, **kwargs)
        self.reqs = [*self._running.reqs, *self._in_flight]


class _Counted:
    """A prompt in flight, with a priority that nobody has more of."""

    def __init__(self, req: Any, priority: float) -> None:
        self._req, self.priority = req, priority

    def __getattr__(self, name: str) -> Any:
        return getattr(self._req, name)


def precedence(scheduler: Any, req: Any) -> int:
    """Who has less goes first, by priority; without priority scheduling all have the same."""
    if not scheduler.enable_priority_scheduling:
        return 0
    return int(req.priority * scheduler.policy.priority_sign)


def first_to_go(scheduler: Any, most: int) -> list[Any]:
    """The first of those that wait. SGLang sorts them by priority only when it looks at them."""
    queue = scheduler.waiting_queue
    if not scheduler.enable_priority_scheduling:
        return list(islice(queue, most))
    return nsmallest(most, queue, key=partial(precedence, scheduler))


def looks_at_queue(scheduler: Any) -> bool:
    """True when SGLang would look whether there is room: it may make some by preemption."""
    return scheduler.enable_priority_preemption or not scheduler.running_batch.batch_is_full


def has_place(scheduler: Any) -> bool:
    """False when SGLang's limit of running requests admits nobody in this step, whoever is first.

    True where it may admit somebody: also before the latest prompts are merged, which may have ended.
    Upstream: `Scheduler._get_new_batch_prefill_raw`, before it looks at the queue.
    """
    last = scheduler.last_batch
    if scheduler.chunked_req is not None or scheduler.enable_priority_preemption:
        return True
    if (last is not None and last.forward_mode.is_extend()) or not somebody_decodes(scheduler):
        return True
    return bool(scheduler.get_num_allocatable_reqs(len(scheduler.running_batch.reqs)) > 0)


def known_cached_tokens(req: Any) -> int | None:
    """Tokens of a waiting prompt that were in the prefix cache; None when nobody has looked at its length."""
    length, cached = getattr(req, "layered_cached", (None, None))
    return cached if length == req.seqlen else None


def look_up_cached_tokens(scheduler: Any, req: Any) -> int:
    """Look, once for its present length, how many tokens of a waiting prompt are in the prefix cache.

    SGLang looks at its turn; what it finds then counts, this is only who goes first.
    """
    cached: int = requests.look_up_prefix(scheduler.tree_cache, req)
    req.layered_cached = (req.seqlen, cached)
    return cached


def admit_only(
    scheduler: Any, chosen: Sequence[Any], in_flight: Sequence[Any], running: ScheduleBatch | None = None
) -> ScheduleBatch | None:
    """A prompt batch of chosen ones among those that wait; those in flight count as running.

    `running` is the running batch where that is not the scheduler's yet.

    So room for their tokens to come, their request slots and their adapters are reserved. None is cut into
    chunks: SGLang knows one prompt between two chunks, and that may be in flight. Requests that run may be
    preempted, those in flight are not: their slots are half filled.
    """
    running = scheduler.running_batch if running is None else running
    counted = in_flight
    if scheduler.enable_priority_preemption:
        most_urgent = -scheduler.policy.priority_sign * inf
        counted = [_Counted(req, most_urgent) for req in in_flight]
    everybody = _Room(running, counted)
    chunked, chunk_size = scheduler.chunked_req, scheduler.chunked_prefill_size
    with waiting(scheduler, chosen), preempted_wait(scheduler, running):
        scheduler.chunked_req = scheduler.chunked_prefill_size = None
        try:
            batch = scheduler.get_new_batch_prefill(everybody).batch_to_run
        finally:
            scheduler.chunked_req, scheduler.chunked_prefill_size = chunked, chunk_size
    running.batch_is_full = everybody.batch_is_full
    if batch is not None and scheduler.enable_priority_preemption:
        # The reporter's labels are priorities that clients gave.
        batch.prefill_stats.num_running_reqs = QueueCount.from_reqs([*running.reqs, *in_flight], True)
    return batch


@contextmanager
def waiting(scheduler: Any, shown: Sequence[Any]) -> Iterator[None]:
    """SGLang sees only these in its queue. Those that it leaves wait in their places after, new ones last."""
    before = list(scheduler.waiting_queue)
    scheduler.waiting_queue = list(shown)
    try:
        yield
    finally:
        left = scheduler.waiting_queue
        scheduler.waiting_queue = before
        if left != shown:  # it is as it was in most steps
            names = set(shown)
            gone, new = names.difference(left), [req for req in left if req not in names]
            kept = [req for req in before if req not in gone] if gone else before
            scheduler.waiting_queue = kept + new


def chunks_keep_room(scheduler: Any, chosen: Sequence[Any]) -> bool:
    """True when these leave slots for the other chunks of the prompt that is between two.

    Tokens to come are estimated as where SGLang reserves room. Upstream: `PrefillAdder`.
    """
    req = scheduler.chunked_req
    if req is None or scheduler.is_hybrid_swa:
        return True
    left = len(req.full_untruncated_fill_ids) - requests.extend_end(req)
    ratio, page = scheduler.new_token_ratio_tracker.current, scheduler.page_size
    for short in chosen:
        new_tokens = min(short.sampling_params.max_new_tokens, CLIP_MAX_NEW_TOKENS)
        left += short.seqlen + ratio * new_tokens + page
    free = scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size()
    return bool(free >= left + page)


def merge(scheduler: Any, batch: ScheduleBatch) -> None:
    """Prompts that have run all layers decode from now on, as where SGLang merges its last batch."""
    running = scheduler.running_batch
    num_before = batch.batch_size()
    batch.filter_batch()
    if batch.batch_size() < num_before:
        room_came_free(running)
    if batch.is_empty():
        return
    if running.is_prefill_only:
        filter_running(running)
    if running.is_empty():
        scheduler.running_batch = batch
    else:
        running.merge_batch(batch)
