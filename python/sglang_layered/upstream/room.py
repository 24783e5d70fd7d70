"""How requests leave the running batch, a cohort or the pool, and room in the KV pool beside a cohort.

SGLang reserves room for all chunks of a prompt when it admits it, and runs them one after another with no
decode between them. In layered mode running requests decode meanwhile, and may have used it up. The new slots
of a request that leaves a cohort early are filled in some layers only, so nothing that keeps KV may get them.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.mem_cache.common import evict_from_tree_cache

from sglang_layered.upstream.cache import goes_on_from_slot, in_streaming_session, session_slots_of
from sglang_layered.upstream.releases import arguments, requests, serving

logger = logging.getLogger(__name__)


def somebody_decodes(scheduler: Any) -> bool:
    """True with a request that decodes. SGLang filters the batch where it changes it."""
    running = scheduler.running_batch
    return not running.is_prefill_only and any(not req.finished() for req in running.reqs)


def rows_per_request(scheduler: Any) -> int:
    """Rows of a request in a decode step: more than one where drafts are verified."""
    if scheduler.spec_algorithm.is_none():
        return 1
    num_rows: int = arguments.resolved(scheduler.server_args).speculative_num_draft_tokens
    return num_rows


def running_soon(scheduler: Any) -> list[Any]:
    """Requests that decode once SGLang has merged the latest prompts into the running batch."""
    reqs = list(scheduler.running_batch.reqs)
    last = scheduler.last_batch
    if last is not None and last is not scheduler.running_batch and last.forward_mode.is_extend():
        reqs += [req for req in last.reqs if req is not scheduler.chunked_req]
    return [req for req in reqs if not req.finished()]


def leave_all_running(scheduler: Any) -> None:
    """Before SGLang retracts every request: all are in the running batch, and there is no last one."""
    running, last = scheduler.running_batch, scheduler.last_batch
    if last is not None and last is not running and last.forward_mode.is_extend():
        running.reqs = [*running.reqs, *(req for req in last.reqs if req not in running.reqs)]
    scheduler.last_batch = None


def room_came_free(running: ScheduleBatch) -> None:
    """Let SGLang look at the waiting queue again.

    SGLang marks the running batch full when the next prompt finds no request slot or no KV, and from then on
    does not look at the queue. It takes the mark away where its own functions shorten that batch. So whoever
    takes a request out of the running batch, a cohort or the pool by other means calls this, or what waits
    is never admitted. Upstream: srt/managers/scheduler.py `_get_new_batch_prefill_raw`.
    """
    running.batch_is_full = False


def filter_running(running: ScheduleBatch) -> None:
    """Take finished requests out of the running batch. An empty batch is never full."""
    num_before = len(running.reqs)
    running.filter_batch()
    if len(running.reqs) < num_before or running.is_empty():
        room_came_free(running)


def filter_finished(scheduler: Any) -> bool:
    """True when nothing decodes; then the running batch is empty, and so not full, whatever left it how."""
    if somebody_decodes(scheduler):
        return False
    filter_running(scheduler.running_batch)
    return True


def abort_requests(scheduler: Any, reqs: Sequence[Any]) -> None:
    """End requests that were aborted in flight, as SGLang ends an aborted chunk.

    Upstream: `Scheduler.process_pending_chunked_abort`. A streaming session loses its KV with the request, as
    in SGLang, and its next turn computes the whole conversation again.
    """
    for req in reqs:
        reason = req.to_finish
        req.finished_reason, req.to_finish = reason, None
        _leave_chunking(scheduler, req)
        serving.forget_aborted(scheduler, req)
        requests.release_unkept(req, scheduler.tree_cache)
        _tell(scheduler, req)


def end_aborted_that_wait(scheduler: Any) -> None:
    """End requests that were aborted while they ran, and retracted before a result ended them.

    In SGLang the mark stays on them in the queue, and they are computed anew to one token more. A
    turn leaves its streaming session as there. Upstream: `StreamingSession.find_active_slot`.
    """
    queue = scheduler.waiting_queue
    for req in [req for req in queue if req.is_retracted and req.to_finish is not None]:
        queue.remove(req)
        if in_streaming_session(req):
            req.session.abort_req()
            req.session = None
        req.finished_reason, req.to_finish = req.to_finish, None
        serving.forget_aborted(scheduler, req)
        _tell(scheduler, req)


def _tell(scheduler: Any, req: Any) -> None:
    """Tell the trace and the tokenizer process that an aborted request is over."""
    req.time_stats.trace_ctx.abort(abort_info={"reason": "Aborted"})
    serving.tell_aborted(scheduler, req)


def requeue_requests(scheduler: Any, reqs: Sequence[Any]) -> None:
    """Send requests back to the waiting queue as if retracted; they start again from what is kept of them."""
    for req in reqs:
        _leave_chunking(scheduler, req)
        _give_back(scheduler, req)
        req.reset_for_retract()
        scheduler._add_request_to_queue(req, is_retracted=True)


def _give_back(scheduler: Any, req: Any) -> None:
    """Free what a request in flight has allocated: of a later turn of a session what lies behind its slot."""
    sessions = session_slots_of(scheduler.tree_cache)
    if sessions is not None and goes_on_from_slot(sessions, req):
        requests.give_turn_back(sessions, req)
    else:
        requests.release_retracted(req, scheduler.tree_cache)


def _leave_chunking(scheduler: Any, req: Any) -> None:
    if scheduler.chunked_req is req:
        scheduler.chunked_req = None
        req.inflight_middle_chunks = 0
    if scheduler._pending_chunked_abort_req is req:
        scheduler._pending_chunked_abort_req = None


def last_one_has_no_room(running: ScheduleBatch) -> bool:
    """SGLang would abort the last running request for want of a slot, though others may hold some.

    It retracts the others first. That frees nothing when they are turns of streaming sessions, whose slots
    their sessions keep, or when all their slots are in the prefix cache, perhaps those of the last one; so
    those do not count as others.
    """
    gains = (
        req
        for req in running.reqs
        if not (req.finished() or (req.session is not None and in_streaming_session(req)))
        and req.kv.kv_allocated_len > requests.cached_len(req)
    )
    if len(list(islice(gains, 2))) == 2 or running.is_prefill_only:
        return False
    if all(req.finished() for req in running.reqs):
        return False
    filter_running(running)
    return not running.check_decode_mem()


def wait_again(scheduler: Any, running: ScheduleBatch) -> None:
    """Whoever decodes in this micro-batch leaves it and the pool, as if retracted."""
    reqs = [req for req in running.reqs if not req.finished()]
    logger.info("%s wait again: other micro-batches hold all slots", [req.rid for req in reqs])
    requests.leave_out(running, reqs)
    room_came_free(running)
    requeue_requests(scheduler, reqs)


def is_chunk_aborted(scheduler: Any) -> bool:
    """SGLang is about to end a prompt between two chunks, and tells no micro-batch of the room."""
    aborted = scheduler._pending_chunked_abort_req
    return aborted is not None and aborted is scheduler.chunked_req


def next_chunk_fits(scheduler: Any) -> bool:
    """Whether SGLang finds slots for the next chunk; it ends the server when it does not.

    Slots of the prefix cache count, and are freed when they are needed. With a sliding-window pool SGLang
    itself lets the chunk wait. Upstream: srt/managers/schedule_policy.py `PrefillAdder.add_chunked_req`.
    """
    req = scheduler.chunked_req
    if req is None or req is scheduler._pending_chunked_abort_req or scheduler.is_hybrid_swa:
        return True
    num_left = len(req.full_untruncated_fill_ids) - requests.extend_end(req)
    num_tokens = min(num_left, scheduler.chunked_prefill_size)
    num_slots = -(-num_tokens // scheduler.page_size) * scheduler.page_size
    evict_from_tree_cache(scheduler.tree_cache, num_slots)
    return bool(scheduler.token_to_kv_pool_allocator.available_size() >= num_slots)


def make_room_for_chunk(scheduler: Any, settle: Callable[[], Any]) -> bool:
    """Let a prompt whose next chunk has no room wait again; True when it does.

    SGLang ends the server there. `settle` processes results that are pending, which may free some slots. The
    chunks so far stay in the prefix cache, where others may claim their slots.
    """
    if next_chunk_fits(scheduler):
        return False
    settle()
    if next_chunk_fits(scheduler):
        return False
    req = scheduler.chunked_req
    logger.info("Prompt %s waits again: no room for its next chunk", req.rid)
    scheduler.stash_chunked_request(req)
    # Over stages SGLang leaves it out where it merges the chunk's batch.
    if serving.ranks_of(scheduler).pp_size == 1:
        requests.leave_out(scheduler.last_batch, [req])
    requeue_requests(scheduler, [req])
    return True


@contextmanager
def preempted_wait(scheduler: Any, running: ScheduleBatch) -> Iterator[None]:
    """Whom SGLang preempts waits again, also where the prompt that it made room for then does not fit.

    SGLang forgets them there: they are queued with the prompts that it admits, and it admits none. Upstream:
    `Scheduler._get_new_batch_prefill_raw`.
    """
    if not scheduler.enable_priority_preemption:
        yield
        return
    last = scheduler.last_batch
    reqs = [*running.reqs, *([] if last is None else last.reqs)]
    # Who is retracted already waits, and what shows SGLang a part of the queue may hide it.
    before = {id(req): (req, req.to_finish) for req in reqs if not req.is_retracted}
    yield
    queued = set(map(id, scheduler.waiting_queue))
    for key, (req, end) in before.items():
        if req.is_retracted and key not in queued and req.to_finish is end:  # or it has been ended
            scheduler._add_request_to_queue(req)
