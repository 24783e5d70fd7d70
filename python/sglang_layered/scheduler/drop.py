"""What becomes of a dropped cohort's requests. Their slots are half filled: none enters the prefix cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import retract_all
from sglang.srt.mem_cache.common import release_kv_cache


def abort_requests(scheduler: Any, reqs: Sequence[Any]) -> None:
    """End requests that were aborted in flight, as SGLang ends an aborted chunk.

    Upstream: `Scheduler.process_pending_chunked_abort`.
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
    """Send requests back to the waiting queue as if retracted; they start again from the prefix cache."""
    for req in reqs:
        _leave_chunking(scheduler, req)
    retract_all(
        reqs=list(reqs),
        server_args=scheduler.server_args,
        req_to_token_pool=scheduler.req_to_token_pool,
        token_to_kv_pool_allocator=scheduler.token_to_kv_pool_allocator,
        tree_cache=scheduler.tree_cache,
        hisparse_coordinator=None,
        offload_kv=False,
    )
    for req in reqs:
        scheduler._add_request_to_queue(req, is_retracted=True)


def _leave_chunking(scheduler: Any, req: Any) -> None:
    if scheduler.chunked_req is req:
        scheduler.chunked_req = None
        req.inflight_middle_chunks = 0
    if scheduler._pending_chunked_abort_req is req:
        scheduler._pending_chunked_abort_req = None
