"""Room in the KV pool beside a cohort: for the last request that decodes, and for a long prompt's next chunk.

SGLang reserves room for all chunks when it admits the prompt and runs them one after another, with no decode
between them. In layered mode running requests decode meanwhile, and may have used it up.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.mem_cache.common import evict_from_tree_cache

from sglang_layered.scheduler.drop import filter_running, requeue_requests, room_came_free
from sglang_layered.scheduler.kept_kv import in_streaming_session
from sglang_layered.scheduler.results import StepResults

logger = logging.getLogger(__name__)


def last_one_has_no_room(running: ScheduleBatch) -> bool:
    """SGLang would abort the last running request for want of a slot; a cohort in flight holds some.

    It retracts the others first. That frees nothing when they are turns of streaming sessions, whose slots
    their sessions keep, so those do not count as others.
    """
    gains = (req for req in running.reqs if not (req.finished() or in_streaming_session(req)))
    if len(list(islice(gains, 2))) == 2 or running.is_prefill_only:
        return False
    if all(req.finished() for req in running.reqs):
        return False
    filter_running(running)
    return not running.check_decode_mem()


def next_chunk_fits(scheduler: Any) -> bool:
    """Whether SGLang finds slots for the next chunk; it ends the server when it does not.

    Slots of the prefix cache count, and are freed when they are needed. With a sliding-window pool SGLang
    itself lets the chunk wait. Upstream: srt/managers/schedule_policy.py `PrefillAdder.add_chunked_req`.
    """
    req = scheduler.chunked_req
    if req is None or req is scheduler._pending_chunked_abort_req or scheduler.is_hybrid_swa:
        return True
    num_left = len(req.full_untruncated_fill_ids) - req.extend_range.end
    num_tokens = min(num_left, scheduler.chunked_prefill_size)
    num_slots = -(-num_tokens // scheduler.page_size) * scheduler.page_size
    evict_from_tree_cache(scheduler.tree_cache, num_slots)
    return bool(scheduler.token_to_kv_pool_allocator.available_size() >= num_slots)


def make_room_for_chunk(scheduler: Any, results: StepResults) -> None:
    """Let a prompt whose next chunk has no room wait again; results that are pending may free some."""
    if not next_chunk_fits(scheduler):
        results.process_all()
        if not next_chunk_fits(scheduler):
            requeue_chunked_prompt(scheduler)


def requeue_chunked_prompt(scheduler: Any) -> None:
    """The prompt waits again; its chunks so far stay in the prefix cache, where others may claim the slots.

    No result may be pending.
    """
    req = scheduler.chunked_req
    logger.info("Prompt %s waits again: no room for its next chunk", req.rid)
    scheduler.stash_chunked_request(req)
    scheduler.last_batch.filter_batch(chunked_req_to_exclude=[req])
    requeue_requests(scheduler, [req])
    room_came_free(scheduler.running_batch)
