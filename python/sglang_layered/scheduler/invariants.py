"""The invariant checker: ledger against cohort in every step; KV pool and prefix cache too when asked.

`full` and `strict` are slow by design: they walk the prefix cache after every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.environ import envs

from sglang_layered.core.ledger import GroupKVLedger
from sglang_layered.errors import InvariantError
from sglang_layered.scheduler.batch import InFlightCohort


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
                partial = self._pages(entry.slots for entry in self._ledger)
                self._check_apart(partial, self._free_pages(), "in the free list")
                self._check_apart(partial, self._cached_pages(), "in the prefix cache")
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

    def _pages(self, slots: Iterable[Any]) -> set[int]:
        page_size = self._scheduler.page_size
        return {slot // page_size for part in slots for slot in part.tolist()}

    def _free_pages(self) -> set[int]:
        allocator = self._scheduler.token_to_kv_pool_allocator
        allocator = getattr(allocator, "full_attn_allocator", allocator)  # sliding windows have one more pool
        parts = [allocator.free_pages, allocator.release_pages]
        return {page for part in parts if part is not None for page in part.tolist()}

    def _cached_pages(self) -> set[int]:
        cache = self._scheduler.tree_cache
        cache = getattr(cache, "inner", cache)  # streaming sessions wrap it
        root = getattr(cache, "root_node", None)
        return set() if root is None or not root.children else self._pages([cache.all_values_flatten()])

    @staticmethod
    def _check_apart(partial: set[int], others: set[int], where: str) -> None:
        shared = partial & others
        if shared:
            raise InvariantError(f"half-filled KV pages {sorted(shared)[:8]} are {where}")
