"""The invariant checker: after every step, is a half-filled KV slot where something could use it?

It must be in none of these places: the free lists of the pool and, where there is one, of the pool of sliding
windows; the prefix tree, which names the slots of both; the slots of streaming sessions. `upstream/cache.py`
knows these places. `full` and `strict` are slow by design: they walk them all. The cache's gate works at any
level.

With several tensor-parallel ranks `RankCheck` sees that all run the same step, or a collective would hang or
mix rows.
"""

import zlib
from typing import Any

import torch
import torch.distributed
from sglang.srt.environ import envs
from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.errors import InvariantError
from sglang_layered.scheduler.batch import InFlightCohort, LayerGroupBatch
from sglang_layered.scheduler.cohorts import CohortSet
from sglang_layered.upstream.cache import session_values, tree_values
from sglang_layered.upstream.releases import requests, serving


class InvariantChecker:
    """Checks one scheduler's pools against the cohorts in flight, as far as `level` says.

    Raises:
        InvariantError: a half-filled slot is free, cached or not where the pool says; the ledger and the
            cohorts in flight disagree; or SGLang's own accounting misses slots.
    """

    def __init__(self, scheduler: Any, cohorts: CohortSet, level: str) -> None:
        self._scheduler = scheduler
        self._cohorts = cohorts
        self._walks_pools = level != "basic"
        asked = self._walks_pools or envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY.get() > 0
        # SGLang's own count knows one running batch; over stages every micro-batch has one.
        self._counts_slots = asked and serving.ranks_of(scheduler).pp_size == 1
        self.is_strict = level == "strict"
        self.is_on = self._walks_pools or self._counts_slots

    def between_steps(self) -> None:
        """Check, while no step is half scheduled."""
        if self._walks_pools:
            self._check_ledger()
            slots: list[Any] = [slots for _, slots in self._cohorts.ledger]
            if slots:
                self._check_slots(torch.cat(slots).to(torch.int64))
            for inflight in self._cohorts.inflight:
                self._check_pool_rows(inflight)
        if self._counts_slots:
            try:
                self._scheduler.invariant_checker.self_check_during_busy()
            except AssertionError as error:
                raise InvariantError(str(error)) from error

    def _check_ledger(self) -> None:
        known = [request_id for request_id, _ in self._cohorts.ledger]
        expected = [name for item in self._cohorts.inflight for name in item.cohort.request_ids]
        if sorted(known) != sorted(expected):
            raise InvariantError(f"the ledger holds {known}, in flight are {expected}")

    def _check_pool_rows(self, inflight: InFlightCohort) -> None:
        table = self._scheduler.req_to_token_pool.req_to_token
        slots: dict[str, Any] = dict(self._cohorts.ledger)
        for req, length in zip(inflight.reqs, inflight.batch.extend_lens, strict=True):
            end = int(requests.extend_end(req))
            row = table[requests.pool_row(req), end - length : end]
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
        inflight = [req for item in self._cohorts.inflight for req in item.reqs]
        kept = session_values(scheduler.tree_cache, scheduler.req_to_token_pool.req_to_token, inflight)
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


class RankCheck:
    """Compares every step over the ranks; does nothing with one rank or at level `basic`.

    Raises:
        InvariantError: on every rank, when they do not agree; the step has not run then.
    """

    def __init__(self, scheduler: Any, level: str) -> None:
        ranks = serving.ranks_of(scheduler)
        self._num_ranks = ranks.tp_size if level != "basic" else 1
        self.is_on = self._num_ranks > 1
        self._rank = ranks.tp_rank
        self._group = scheduler.tp_cpu_group

    def compare(self, step: LayerGroupBatch | ScheduleBatch | None) -> None:
        """Call once a step on every rank, before it runs."""
        if not self.is_on:
            return
        mine = describe(step)
        digest = torch.tensor([zlib.crc32(mine.encode())])
        digests = [torch.empty_like(digest) for _ in range(self._num_ranks)]
        torch.distributed.all_gather(digests, digest, group=self._group)
        if any(int(other) != int(digest) for other in digests):
            raise InvariantError(f"ranks would run different steps; rank {self._rank} has {mine}")


def describe(step: LayerGroupBatch | ScheduleBatch | None) -> str:
    """What a step would run, as text: kinds, requests in order, rows, layers."""
    if step is None:
        return "nothing"
    if isinstance(step, LayerGroupBatch):
        cohort = step.inflight.cohort
        decode = "no decode" if step.decode is None else describe(step.decode)
        what = "the encoder before" if step.encodes else "layers"
        return f"{what} {cohort.group} of {cohort.plan} for {cohort.request_ids}, {decode}"
    rows = step.extend_lens if step.forward_mode.is_extend() else ()
    return f"{step.forward_mode.name} {[req.rid for req in step.reqs]} rows {list(rows or ())}"
