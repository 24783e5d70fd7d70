"""The places where SGLang keeps KV beyond a request: the prefix tree and the slots of streaming sessions.

Sliding-window models have one tree for both pools; its nodes name the slots of the full pool, to which those
of the window are mapped. A half-filled slot must be in none of these places, and `guard_cache` is their gate.
"""

from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.mem_cache.hiradix_cache import HiRadixCache
from sglang.srt.session.streaming_session import StreamingSession

from sglang_layered.errors import InvariantError


def session_slots_of(tree_cache: Any) -> StreamingSession | None:
    """What keeps the KV of streaming sessions between turns, or None: around the tree or a part of it."""
    for found in (tree_cache, getattr(tree_cache, "session", None)):
        if isinstance(found, StreamingSession):
            return found
    return None


def in_streaming_session(req: Any) -> bool:
    """True for a turn of a streaming session, whose slots the session keeps when SGLang retracts it."""
    return req.session is not None and bool(req.session.streaming)


def goes_on_from_slot(sessions: StreamingSession, req: Any) -> bool:
    """True for a later turn of a streaming session: its row of the request pool is its slot's."""
    if not in_streaming_session(req):
        return False
    slot = sessions.slots.get(req.session.session_id)
    return slot is not None and slot.is_holding_kv


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


def session_values(tree_cache: Any, req_to_token: torch.Tensor) -> torch.Tensor:
    """KV slots that the streaming sessions' slots hold, those of a turn in flight left out."""
    sessions = session_slots_of(tree_cache)
    held = [] if sessions is None else [slot for slot in sessions.slots.values() if slot.is_holding_kv]
    rows = [req_to_token[slot.req_pool_idx, : slot.kv.kv_allocated_len].to(torch.int64) for slot in held]
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)


def guard_cache(scheduler: Any) -> None:
    """Let nothing keep the KV of a request in flight: the cache asks the layered loop's ledger first.

    Every way into the tree and into a session's slot leads through these two methods of the outermost cache.
    Upstream: srt/mem_cache/common.py `release_kv_cache`, srt/session/streaming_session.py.
    """
    cache = scheduler.tree_cache
    finished = type(cache).cache_finished_req.__get__(cache)  # of the class: a second loop adds no second
    unfinished = type(cache).cache_unfinished_req.__get__(cache)

    def cache_finished_req(req: Any, is_insert: bool = True, **kwargs: Any) -> None:
        if is_insert or _session_would_keep(req):
            _refuse_half_filled(scheduler, req)
        finished(req, is_insert=is_insert, **kwargs)

    def cache_unfinished_req(req: Any, **kwargs: Any) -> None:
        _refuse_half_filled(scheduler, req)
        unfinished(req, **kwargs)

    cache.cache_finished_req, cache.cache_unfinished_req = cache_finished_req, cache_unfinished_req


def _session_would_keep(req: Any) -> bool:
    """A streaming session saves its turn whatever `is_insert` says, but for an aborted one."""
    return in_streaming_session(req) and not isinstance(req.finished_reason, FINISH_ABORT)


def _refuse_half_filled(scheduler: Any, req: Any) -> None:
    ledger = scheduler.layered_loop.cohorts.ledger
    if not ledger.may_be_kept(req.rid):
        raise InvariantError(f"KV of request {req.rid} would be kept before its last layer group")
