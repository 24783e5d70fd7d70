"""SGLang 0.5.17's requests and batches, and where their KV is kept and given back.

Upstream: srt/managers/schedule_batch.py, srt/mem_cache/common.py, srt/session/streaming_session.py.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch
from sglang.srt.managers.schedule_policy import match_prefix_for_req
from sglang.srt.mem_cache.allocator import paged
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.mem_cache.hiradix_cache import HiRadixCache
from sglang.srt.session.streaming_session import SessionSlot, StreamingSession

pool_row: Callable[[Req], int | None] = attrgetter("req_pool_idx")
"""A request's row in the pool of requests; None before it has one."""

extend_end: Callable[[Req], int] = attrgetter("extend_range.end")
"""Where the chunk ends that a prompt is in, in tokens of the prompt."""

cached_len: Callable[[Req], int] = attrgetter("cache_protected_len")
"""Tokens whose slots the prefix cache has."""


def prefix_len(req: Req) -> int:
    """Tokens of a prompt that were found in the prefix cache, or computed in chunks before."""
    return len(req.prefix_indices)


def extend_lens(batch: ScheduleBatch) -> list[int] | None:
    """Tokens that a forward computes of each request, as results keep them; 0 where there is no prompt."""
    return [req.extend_range.length if req.extend_range is not None else 0 for req in batch.reqs]


def look_up_prefix(tree_cache: Any, req: Req) -> int:
    """Tokens of a waiting prompt in the prefix cache."""
    match_prefix_for_req(tree_cache, req)
    length: int = req.num_matched_prefix_tokens
    return length


def leave_out(batch: ScheduleBatch, reqs: Sequence[Req]) -> None:
    """Take these and finished requests out of a batch."""
    batch.filter_batch(chunked_req_to_exclude=list(reqs))


def release_unkept(req: Req, tree_cache: Any) -> None:
    """Give a request's slots back; the prefix cache gets none of them."""
    release_kv_cache(req, tree_cache, is_insert=False)


def guard_keeping(cache: Any, check: Callable[[Any], None]) -> None:
    """Ask `check` of a request whose KV the cache is about to keep; it raises where that must not be.

    Every way into the tree and into a session's slot leads through these two methods of the outermost cache.
    """
    finished = type(cache).cache_finished_req.__get__(cache)  # of the class: a second loop adds no second
    unfinished = type(cache).cache_unfinished_req.__get__(cache)

    def cache_finished_req(req: Any, is_insert: bool = True, **kwargs: Any) -> None:
        if is_insert or _session_would_keep(req):
            check(req)
        finished(req, is_insert=is_insert, **kwargs)

    def cache_unfinished_req(req: Any, **kwargs: Any) -> None:
        check(req)
        unfinished(req, **kwargs)

    cache.cache_finished_req, cache.cache_unfinished_req = cache_finished_req, cache_unfinished_req


def _session_would_keep(req: Any) -> bool:
    """A streaming session saves its turn whatever `is_insert` says, but for an aborted one."""
    is_turn = req.session is not None and bool(req.session.streaming)
    return is_turn and not isinstance(req.finished_reason, FINISH_ABORT)


def keep_what_is_written(cache: Any, sessions: StreamingSession) -> None:
    """With drafts, let the slot of a streaming session count the tokens whose KV is written, and no more.

    The last token of a verified step is computed by the next one. SGLang counts it as written when a turn
    ends with it, which holds where the next step was launched before the end was seen. Else, as always
    without the overlap scheduler, the next turn would attend to what lay in that slot before. Upstream:
    `StreamingSession.try_cache_finished_req`.
    """
    finished = cache.cache_finished_req

    def cache_finished_req(req: Any, is_insert: bool = True, **kwargs: Any) -> None:
        name = None if req.session is None else req.session.session_id
        written = req.kv_committed_len
        finished(req, is_insert=is_insert, **kwargs)
        slot = sessions.slots.get(name)
        if slot is not None:
            slot.kv_committed_len = min(slot.kv_committed_len, written)

    cache.cache_finished_req = cache_finished_req


def slot_row(slot: SessionSlot) -> int | None:
    """The row in the pool of requests of what a streaming session keeps; None: it keeps nothing."""
    row: int | None = slot.req_pool_idx if slot.is_holding_kv else None
    return row


def slot_end(slot: SessionSlot, inflight: Sequence[Req]) -> int:
    """Tokens that a slot keeps: what these requests compute in it is not among them."""
    end: int = slot.kv.kv_allocated_len  # a turn in flight has a count of its own
    return end


def goes_on_from(slot: SessionSlot) -> bool:
    """True where a turn in flight goes on from what earlier ones left in this slot."""
    return slot_row(slot) is not None


def give_turn_back(sessions: StreamingSession, req: Any) -> None:
    """Free what a later turn has allocated behind its session's slot; the slot is as before the turn.

    Or it is gone, and the next turn computes the whole conversation: where the turn has moved on what the
    slot would start from, a sliding window or the states of recurrent layers.
    """
    slot = sessions.slots[req.session.session_id]
    has_moved = req.kv.swa_evicted_seqlen > slot.kv.swa_evicted_seqlen
    if has_moved or slot.mamba_pool_idx is not None:
        slot.kv.kv_allocated_len = req.kv.kv_allocated_len
        slot.kv.swa_evicted_seqlen = req.kv.swa_evicted_seqlen
        sessions.release_session(req.session.session_id)
    else:
        sessions._free_kv_aligned(slot.req_pool_idx, slot.kv.kv_allocated_len, req.kv.kv_allocated_len)
    req.req_pool_idx = req.kv = None


def release_retracted(req: Req, tree_cache: Any) -> None:
    """Give the slots of a request back that is to wait again.

    SGLang's release would save a turn of a session into its slot, whatever is filled of it, and the next turn
    would go on from there. So a first turn is released as a request without a session.
    """
    session, req.session = req.session, None
    try:
        release_unkept(req, tree_cache)
    finally:
        req.session = session


def tree_values(tree_cache: Any) -> torch.Tensor:
    """KV slots that the prefix tree holds, one entry a token."""
    tree = getattr(tree_cache, "inner", tree_cache)
    root = getattr(tree, "root_node", None)
    if root is None or not root.children:
        return torch.empty(0, dtype=torch.int64)
    if isinstance(tree, HiRadixCache):
        return _values_on_device(root)
    return tree.all_values_flatten()


def _values_on_device(root: Any) -> torch.Tensor:
    """SGLang's own walk takes nodes without a value, whose KV is on the host, for ones with."""
    found, nodes = [], list(root.children.values())
    while nodes:
        node = nodes.pop()
        nodes.extend(node.children.values())
        if node.value is not None:
            found.append(node.value)
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def allocate_pages_by_torch() -> None:
    """Let SGLang find slots on pages of several tokens by its own code in torch: a CPU has no Triton."""
    paged.alloc_extend_kernel, paged.alloc_decode_kernel = _Launched(_extend), _Launched(_decode)


class _Launched:
    """A function that is called as a Triton kernel is launched."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._function


def _extend(
    prefix_lens: torch.Tensor,
    seq_lens: torch.Tensor,
    last_loc: torch.Tensor,
    free_pages: torch.Tensor,
    out: torch.Tensor,
    _: int,
    page_size: int,
) -> None:
    """Write the slots of these requests' next tokens; with too few pages nothing: SGLang then finds so."""
    num_pages = (-(-seq_lens // page_size) + -prefix_lens // page_size).sum()
    if num_pages <= len(free_pages):
        paged.alloc_extend_naive(prefix_lens, seq_lens, last_loc, free_pages, out, page_size, out.device)


def _decode(seq_lens: torch.Tensor, *others: Any) -> None:
    """One more token of each."""
    _extend(seq_lens - 1, seq_lens, *others)
