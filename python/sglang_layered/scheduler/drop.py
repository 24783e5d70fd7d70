"""How requests leave a cohort before its last group, and what SGLang must hear of it.

Their new KV slots are filled in some layers only, so nothing that keeps KV may get them: not the prefix
cache, not a streaming session's slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.mem_cache.common import release_kv_cache

from sglang_layered.scheduler.kept_kv import give_turn_back, goes_on_from_slot, session_slots_of
from sglang_layered.scheduler.running import num_running


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
    if num_running(scheduler):
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
        release_kv_cache(req, scheduler.tree_cache, is_insert=False)
        req.time_stats.trace_ctx.abort(abort_info={"reason": "Aborted"})
        scheduler.ipc_channels.send_to_tokenizer.send_output(
            AbortReq(finished_reason=reason.to_json(), rid=req.rid), req
        )


def requeue_requests(scheduler: Any, reqs: Sequence[Any]) -> None:
    """Send requests back to the waiting queue as if retracted; they start again from what is kept of them."""
    for req in reqs:
        _leave_chunking(scheduler, req)
        _give_back(scheduler, req)
        req.reset_for_retract()
        scheduler._add_request_to_queue(req, is_retracted=True)


def _give_back(scheduler: Any, req: Any) -> None:
    """Free what a request in flight has allocated.

    SGLang's release saves a streaming session's request into the session's slot whatever is filled of it, and
    the next turn goes on from there. So a first turn is released as a request without a session, and a later
    turn gives back what it allocated behind the slot, which stays as it was before the turn.
    """
    sessions = session_slots_of(scheduler.tree_cache)
    if sessions is not None and goes_on_from_slot(sessions, req):
        give_turn_back(sessions, req)
        return
    session, req.session = req.session, None
    try:
        release_kv_cache(req, scheduler.tree_cache, is_insert=False)
    finally:
        req.session = session


def _leave_chunking(scheduler: Any, req: Any) -> None:
    if scheduler.chunked_req is req:
        scheduler.chunked_req = None
        req.inflight_middle_chunks = 0
    if scheduler._pending_chunked_abort_req is req:
        scheduler._pending_chunked_abort_req = None
