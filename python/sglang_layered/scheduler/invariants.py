"""The invariant checker: ledger against cohort in every step; KV pool and all that keeps KV too when asked.

A half-filled slot is in none of these places: the free lists of the pool and, where there is one, of the
sliding windows' pool; the prefix tree, which names the slots of both; the slots of streaming sessions
(`kept_kv`). `full` and `strict` are slow by design: they walk them all after every step.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.environ import envs

from sglang_layered.core.ledger import GroupKVLedger
from sglang_layered.errors import InvariantError
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.kept_kv import session_values, tree_values


class InvariantChecker:
    """Checks one scheduler's pools against the ledger, as far as `level` says (basic, full, strict).

    Raises:
        InvariantError: a half-filled slot is free, cached or not where the pool says; the ledger and the
            cohort in flight disagree; or SGLang's own accounting misses slots.
    """

    def __init__(self, scheduler: Any, ledger: GroupKVLedger, level: str) -> None:
        self._scheduler = scheduler
        self._ledger = ledger
        self._walks_pools = level != "basic"
        self._counts_slots = self._walks_pools or envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY.get() > 0
        self.is_strict = level == "strict"

    def before_group(self, inflight: InFlightCohort | None) -> None:
        """Check before anything of a step is prepared, so that a broken step leaves nothing half done."""
        self._check_ledger(inflight)

    def after_step(self, inflight: InFlightCohort | None) -> None:
        """Check between two steps."""
        if self._walks_pools:
            self._check_ledger(inflight)
            if inflight is not None:
                slots: list[Any] = [entry.slots for entry in self._ledger]
                self._check_slots(torch.cat(slots).to(torch.int64))
                self._check_pool_rows(inflight)
        if self._counts_slots:
            try:
                self._scheduler.invariant_checker.self_check_during_busy()
            except AssertionError as error:
                raise InvariantError(str(error)) from error

    def _check_ledger(self, inflight: InFlightCohort | None) -> None:
        known = {entry.request_id: entry.filled_layers for entry in self._ledger}
        if inflight is None:
            expected = {}
        else:
            filled = inflight.cohort.group.start
            expected = dict.fromkeys(inflight.cohort.request_ids, filled)
        if known != expected:
            raise InvariantError(f"the ledger holds {known}, the cohort in flight is {expected}")

    def _check_pool_rows(self, inflight: InFlightCohort) -> None:
        table = self._scheduler.req_to_token_pool.req_to_token
        slots: dict[str, Any] = {entry.request_id: entry.slots for entry in self._ledger}
        for req, length in zip(inflight.reqs, inflight.batch.extend_lens, strict=True):
            end = int(req.extend_range.end)
            row = table[req.req_pool_idx, end - length : end]
            if not torch.equal(row.to(torch.int64), slots[req.rid].to(torch.int64)):
                raise InvariantError(f"request {req.rid}: its row in the pool is not what was allocated")

    def _check_slots(self, partial: torch.Tensor) -> None:
        scheduler = self._scheduler
        pages, allocator = self._pages(partial), scheduler.token_to_kv_pool_allocator
        # Sliding-window models have a pool for their windows too, whose slots a table gives for the others.
        full = getattr(allocator, "full_attn_allocator", allocator)
        _check_apart(pages, _free_pages(full), "KV pages", "in the free list")
        _check_apart(pages, self._pages(tree_values(scheduler.tree_cache)), "KV pages", "in the prefix cache")
        if full is not allocator:
            windows = allocator.full_to_swa_index_mapping[partial]
            pages = self._pages(windows[windows > 0])  # 0: has left the window
            _check_apart(pages, _free_pages(allocator.swa_attn_allocator), "window pages", "in the free list")
        # By slots: a turn goes on in the page in which its session's slot ends.
        kept = session_values(scheduler.tree_cache, scheduler.req_to_token_pool.req_to_token)
        _check_apart(set(partial.tolist()), set(kept.tolist()), "KV slots", "in a streaming session's slot")

    def _pages(self, slots: torch.Tensor) -> set[int]:
        page_size: int = self._scheduler.page_size
        return set((slots // page_size).tolist())


def _free_pages(allocator: Any) -> set[int]:
    parts = [allocator.free_pages, allocator.release_pages]
    return {page for part in parts if part is not None for page in part.tolist()}


def _check_apart(partial: set[int], others: set[int], what: str, where: str) -> None:
    shared = partial & others
    if shared:
        raise InvariantError(f"half-filled {what} {sorted(shared)[:8]} are {where}")
