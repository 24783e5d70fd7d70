"""SGLang 0.5.23's requests and batches, and where their KV is kept and given back.

What a request holds is its `kv`. Every turn of a streaming session borrows it from the session's slot, the
first one from the allocation of its first chunk on: what it computes lies in the slot at once. Upstream:
srt/managers/schedule_batch.py, srt/mem_cache/common.py, srt/session/streaming_session.py.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch
from sglang.srt.mem_cache.common import match_kv_cache, release_kv_cache
from sglang.srt.session.streaming_session import SessionSlot, StreamingSession

pool_row: Callable[[Req], int | None] = attrgetter("kv.req_pool_idx")
"""A request's row in the pool of requests; None before it has one."""

extend_end: Callable[[Req], int] = attrgetter("extend_end")
"""Where the chunk ends that a prompt is in, in tokens of the prompt."""

cached_len: Callable[[Req], int] = attrgetter("kv.cache_protected_len")
"""Tokens whose slots the prefix cache has."""

prefix_len: Callable[[Req], int] = attrgetter("prefix_len")
"""Tokens of a prompt that were found in the prefix cache, or computed in chunks before."""


def extend_lens(batch: ScheduleBatch) -> list[int] | None:
    """Tokens that a forward computes of each request, as results keep them; None for a decode batch."""
    return list(batch.extend_lens) if batch.forward_mode.is_extend() else None


def look_up_prefix(tree_cache: Any, req: Req) -> int:
    """Tokens of a waiting prompt in the prefix cache."""
    sessions = tree_cache.session if _is_turn(req) else None
    if sessions is not None and sessions.will_lend_record(req):  # a match would lend it
        most = req._compute_max_prefix_len(len(req.origin_input_ids) + len(req.output_ids))
        return min(sessions.slots[req.session.session_id].kv.kv_committed_len, most)
    if sessions is not None and req.to_finish is not None:  # and here take it out of its session
        return 0
    match_kv_cache(req, tree_cache)
    length: int = req.num_matched_prefix_tokens
    return length


def leave_out(batch: ScheduleBatch, reqs: Sequence[Req]) -> None:
    """Take these and finished requests out of a batch."""
    batch.filter_batch(reqs_to_exclude=list(reqs))


def release_unkept(req: Req, tree_cache: Any) -> None:
    """Give a request's slots back; the prefix cache gets none of them."""
    release_kv_cache(req, tree_cache, checkpoint=False)


def guard_keeping(cache: Any, check: Callable[[Any], None]) -> None:
    """Ask `check` of a request whose KV the cache is about to keep; it raises where that must not be.

    The first method is the one way into the tree, the second that of a session to a turn that has ended.
    """
    insert = type(cache).checkpoint.__get__(cache)  # of the class: a second loop adds no second
    claim = type(cache).claim_kv_row.__get__(cache)

    def checkpoint(req: Any, *, up_to: int, **kwargs: Any) -> None:
        check(req)
        insert(req, up_to=up_to, **kwargs)

    def claim_kv_row(req: Any) -> bool:
        if _is_turn(req) and not isinstance(req.finished_reason, FINISH_ABORT):
            check(req)
        return bool(claim(req))

    cache.checkpoint, cache.claim_kv_row = checkpoint, claim_kv_row


def _is_turn(req: Any) -> bool:
    return req.session is not None and bool(req.session.streaming)


def keep_what_is_written(cache: Any, sessions: StreamingSession) -> None:
    """With drafts, let the slot of a streaming session count the tokens whose KV is written, and no more.

    The last token of a verified step is computed by the next one, and slots for further drafts lie behind it:
    SGLang counts it as written when a turn ends with it, as 0.5.17 does. What is not counted the next turn
    computes. Upstream: `StreamingSession.try_cache_finished_req`.
    """
    finished = type(sessions).try_cache_finished_req.__get__(sessions)

    def try_cache_finished_req(req: Any) -> bool:
        name = None if req.session is None else req.session.session_id
        written = req.kv.kv_committed_len
        is_kept = bool(finished(req))
        if is_kept:
            kv = sessions.slots[name].kv
            kv.kv_committed_len = min(kv.kv_committed_len, written)
        return is_kept

    vars(sessions)["try_cache_finished_req"] = try_cache_finished_req


def slot_row(slot: SessionSlot) -> int | None:
    """The row in the pool of requests of what a streaming session keeps; None: it keeps nothing."""
    return pool_row(slot)


def slot_end(slot: SessionSlot, inflight: Sequence[Req]) -> int:
    """Tokens that a slot keeps: what these requests compute in it is not among them."""
    ends = [prefix_len(req) for req in inflight if req.kv is slot.kv]
    return min([*ends, slot.kv.kv_allocated_len])


def goes_on_from(slot: SessionSlot) -> bool:
    """True where a turn in flight goes on from what earlier ones left in this slot."""
    return slot.kv.holds_kv and not slot.publishes_prompt


def give_turn_back(sessions: StreamingSession, req: Any) -> None:
    """Free what a later turn has allocated behind what its session had before it.

    Chunks that were done are computed anew, too: if the turn ends while it waits, SGLang would take them for
    the conversation's. Or the slot is gone, and the next turn computes the whole conversation: where windows
    have moved, or recurrent layers have states.
    """
    name, kv = req.session.session_id, req.kv
    [last] = req.session.req_nodes.values()
    # Of the last token of an answer there is KV with the overlap scheduler only; it is computed again.
    start = req.session.committed_origin_len + len(last.req.output_ids) - 1
    if kv.holds_mamba or kv.max_evicted_seqlen > kv.cache_protected_len:
        sessions.release_session(name)
    else:
        sessions._free_tail(kv, min(start, kv.kv_allocated_len))
    req.detach_kv()


def release_retracted(req: Req, tree_cache: Any) -> None:
    """Give the slots of a request back that is to wait again.

    SGLang's release would keep a turn in its slot, whatever is filled of it, and the next turn would go on
    from there. So a first turn has its KV back, as one that was aborted, and is released as a request without
    a session.
    """
    sessions, session = tree_cache.session, req.session
    slot = sessions.borrowed_slot(req)
    if slot is not None:
        del sessions.slots[session.session_id]
        req.lock, slot.lock = slot.lock, None
    req.session = None
    try:
        release_unkept(req, tree_cache)
    finally:
        req.session = session


def tree_values(tree_cache: Any) -> torch.Tensor:
    """KV slots that the prefix tree holds, one entry a token; of nodes whose KV is on the host none."""
    values: torch.Tensor = tree_cache.all_values_flatten()
    return values


def allocate_pages_by_torch() -> None:
    """SGLang does where a device has no Triton."""
