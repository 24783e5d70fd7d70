"""The places where SGLang keeps KV beyond a request: the prefix tree and the slots of streaming sessions.

Sliding-window models have one tree for both pools; its nodes name the slots of the full pool, to which those
of the window are mapped. A half-filled slot must be in none of these places, and `guard_cache` is their gate.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from sglang.srt.session.streaming_session import StreamingSession

from sglang_layered.errors import InvariantError
from sglang_layered.upstream.releases import requests


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
    return slot is not None and requests.goes_on_from(slot)


tree_values: Callable[[Any], torch.Tensor] = requests.tree_values
"""KV slots that the prefix tree holds, one entry a token."""


def session_values(tree_cache: Any, req_to_token: torch.Tensor, inflight: Sequence[Any] = ()) -> torch.Tensor:
    """KV slots that the streaming sessions' slots hold; what these requests compute in them is left out."""
    sessions = session_slots_of(tree_cache)
    held = [] if sessions is None else [(requests.slot_row(slot), slot) for slot in sessions.slots.values()]
    ends = {row: requests.slot_end(slot, inflight) for row, slot in held if row is not None}
    rows = [req_to_token[row, :end].to(torch.int64) for row, end in ends.items()]
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)


def guard_cache(scheduler: Any) -> None:
    """Let nothing keep the KV of a request in flight: the cache asks the layered loop's ledger first."""
    cache = scheduler.tree_cache
    requests.guard_keeping(cache, partial(_refuse_half_filled, scheduler))
    sessions = session_slots_of(cache)
    if sessions is not None and not scheduler.spec_algorithm.is_none():
        requests.keep_what_is_written(cache, sessions)


def _refuse_half_filled(scheduler: Any, req: Any) -> None:
    ledger = scheduler.layered_loop.cohorts.ledger
    if not ledger.may_be_kept(req.rid):
        raise InvariantError(f"KV of request {req.rid} would be kept before its last layer group")
