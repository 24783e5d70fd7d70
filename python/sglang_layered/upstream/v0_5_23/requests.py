"""SGLang 0.5.23's requests and batches, and where their KV is kept and given back.

What a request holds is its `kv`, which a streaming session's turn borrows from the session's slot. Upstream:
srt/managers/schedule_batch.py, srt/mem_cache/common.py, srt/session/streaming_session.py.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch
from sglang.srt.mem_cache.common import match_kv_cache, release_kv_cache
from sglang.srt.session.streaming_session import SessionSlot, StreamingSession

SESSIONS = "turns of streaming sessions in flight are not carried to SGLang 0.5.23 yet; leave sessions out"


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
    if _is_turn(req):  # SGLang would lend it the slot's KV, as if it was admitted
        raise NotImplementedError(SESSIONS)
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
    """With drafts, let the slot of a streaming session count the tokens whose KV is written, and no more."""
    raise NotImplementedError(SESSIONS)


def slot_row(slot: SessionSlot) -> int | None:
    """The row in the pool of requests of what a streaming session keeps; None: it keeps nothing."""
    if not slot.kv.holds_kv:
        return None
    raise NotImplementedError(SESSIONS)  # a turn in flight may have borrowed it


def give_turn_back(sessions: StreamingSession, req: Any) -> None:
    """Free what a later turn has allocated behind its session's slot; the slot is as before the turn."""
    raise NotImplementedError(SESSIONS)


def release_retracted(req: Req, tree_cache: Any) -> None:
    """Give the slots of a request back that is to wait again."""
    if _is_turn(req):
        raise NotImplementedError(SESSIONS)
    release_unkept(req, tree_cache)


def tree_values(tree_cache: Any) -> torch.Tensor:
    """KV slots that the prefix tree holds, one entry a token; of nodes whose KV is on the host none."""
    values: torch.Tensor = tree_cache.all_values_flatten()
    return values
