"""FlashInfer's wrappers in plain torch, as SGLang's flashinfer backend plans and runs them.

A wrapper for graphs keeps its tables in the buffers that it was made with, and what it planned in memory of
its own, as the captured kernels read them: a run after another plan, or with other tables, is an error here.
"""

from __future__ import annotations

from typing import Any

import torch
from flashinfer_emulation import attend

from memory_watch import as_kernel

Tensors = tuple[torch.Tensor, torch.Tensor]
DECODE_BUFFERS = {"kv": "paged_kv_indptr_buffer", "indices": "paged_kv_indices_buffer"}
PREFILL_BUFFERS = {"qo": "qo_indptr_buf", "kv": "paged_kv_indptr_buf", "indices": "paged_kv_indices_buf"}


def emulate_flashinfer() -> None:
    """Put them where SGLang makes wrappers and plans them again."""
    import sglang.srt.layers.attention.flashinfer_backend as backend

    backend.BatchDecodeWithPagedKVCacheWrapper = PagedDecode
    backend.BatchPrefillWithPagedKVCacheWrapper = PagedPrefill
    backend.BatchPrefillWithRaggedKVCacheWrapper = RaggedPrefill
    backend.fast_decode_plan = plan_again
    backend.fast_prefill_plan = plan_drafts_again
    backend._safe_merge_state = merge


class Wrapper:
    """What all have: scratch memory that every run writes, and the plan's row bounds."""

    def __init__(self, workspace: torch.Tensor, layout: str, *, use_cuda_graph: bool = False, **made: Any):
        assert layout == "NHD", layout
        self.is_cuda_graph_enabled = use_cuda_graph
        self._workspace = workspace
        self._made = made
        self._tables: dict[str, torch.Tensor] = {}
        self._planned: dict[str, torch.Tensor] = {}

    def _keep(self, buffers: dict[str, str], **tables: torch.Tensor) -> None:
        for name, table in tables.items():
            if not self.is_cuda_graph_enabled:
                self._tables[name], self._planned[name] = table, table.clone()
                continue
            home = self._tables.setdefault(name, self._made[buffers[name]])
            if home.data_ptr() != table.data_ptr():
                home[: len(table)].copy_(table)
            planned = self._planned.setdefault(name, torch.zeros_like(home))
            planned[: len(table)].copy_(table)

    def _bounds(self, name: str, num: int) -> list[int]:
        """The planned bounds of `num` requests; the tables must still be the planned ones."""
        planned, table = self._planned[name][: num + 1], self._tables[name][: num + 1]
        assert torch.equal(planned, table), f"{name} is {table.tolist()}, planned was {planned.tolist()}"
        bounds: list[int] = planned.tolist()
        return bounds

    def _scratch(self) -> None:
        self._workspace[:1].fill_(0)

    def end_forward(self) -> None:
        pass


class PagedDecode(Wrapper):
    """One row a request, on KV pages of one token."""

    @property
    def _paged_kv_indices_buf(self) -> torch.Tensor:
        buffer: torch.Tensor = self._made[DECODE_BUFFERS["indices"]]
        return buffer

    def begin_forward(
        self, indptr: Any, indices: Any, last_page_len: Any, q_heads: int, *sizes: int, **others: Any
    ) -> None:
        assert sizes[2] == 1, f"no reference for pages of {sizes[2]} tokens"
        assert len(indptr) == len(last_page_len) + 1
        self._num_requests, self._num_heads = len(last_page_len), q_heads
        self._keep(DECODE_BUFFERS, kv=indptr, indices=indices)

    def forward(self, q: torch.Tensor, cache: Tensors, sm_scale: float, **others: Any) -> torch.Tensor:
        assert q.shape[:2] == (self._num_requests, self._num_heads), (q.shape, self._num_requests)
        bounds, indices = self._bounds("kv", len(q)), self._tables["indices"]
        self._scratch()
        return _attend_pages(q, list(range(len(q) + 1)), bounds, indices, cache, sm_scale, causal=False)[0]


def plan_again(
    wrapper: PagedDecode, indptr: Any, *args: Any, global_override_indptr_cpu: Any = None, **kwargs: Any
) -> None:
    """FlashInfer's plan without a sync: what it splits comes from the host's copy of the lengths."""
    host = global_override_indptr_cpu
    assert host is None or host.tolist() == indptr.tolist(), (
        f"the host plans {host.tolist()}, the device has {indptr.tolist()}"
    )
    assert wrapper.is_cuda_graph_enabled, "only wrappers for graphs are planned again"
    PagedDecode.begin_forward(wrapper, indptr, *args, **kwargs)


class PagedPrefill(Wrapper):
    """Rows of prompts, or of drafts with a mask [rows, keys] each request, on KV pages of one token."""

    _mask: torch.Tensor | None = None

    def begin_forward(
        self,
        qo_indptr: Any,
        kv_indptr: Any,
        indices: Any,
        last: Any,
        q_heads: int,
        *sizes: int,
        custom_mask: Any = None,
        **others: Any,
    ) -> None:
        assert sizes[2] == 1, f"no reference for pages of {sizes[2]} tokens"
        assert len(qo_indptr) == len(kv_indptr) == len(last) + 1
        self._num_requests = len(last)
        self._keep(PREFILL_BUFFERS, qo=qo_indptr, kv=kv_indptr, indices=indices)
        home = self._made.get("custom_mask_buf")  # a bit an entry there; captured kernels read it
        if home is None:
            self._mask = None if custom_mask is None else custom_mask.clone()
            return
        home[: len(custom_mask)].copy_(custom_mask)
        self._mask = home

    def forward(self, q: torch.Tensor, cache: Tensors, **call: Any) -> torch.Tensor:
        return self.forward_return_lse(q, cache, **call)[0]

    def forward_return_lse(
        self, q: torch.Tensor, cache: Tensors, causal: bool = True, sm_scale: float = 1.0, **others: Any
    ) -> Tensors:
        rows, keys = self._bounds("qo", self._num_requests), self._bounds("kv", self._num_requests)
        assert rows[-1] == len(q), f"the plan has {rows[-1]} rows, attention got {len(q)}"
        self._scratch()
        indices = self._tables["indices"]
        return _attend_pages(q, rows, keys, indices, cache, sm_scale, self._mask, causal=causal)


def plan_drafts_again(
    wrapper: PagedPrefill,
    qo_indptr: Any,
    kv_indptr: Any,
    *args: Any,
    qo_indptr_host: Any,
    kv_indptr_host: Any,
    kv_lens_host: Any,
    max_q_len: int,
    max_kv_len: int,
    **kwargs: Any,
) -> None:
    """SGLang's plan without a sync: the host's own bounds."""
    for host, device in ((qo_indptr_host, qo_indptr), (kv_indptr_host, kv_indptr)):
        assert host.tolist() == device.tolist(), f"the host plans {host}, the device has {device}"
    assert wrapper.is_cuda_graph_enabled, "only wrappers for graphs are planned again"
    PagedPrefill.begin_forward(wrapper, qo_indptr, kv_indptr, *args, **kwargs)


class RaggedPrefill(Wrapper):
    """Rows of prompts on the keys and values of the same rows."""

    def begin_forward(self, qo_indptr: Any, kv_indptr: Any, *others: Any, **more: Any) -> None:
        self._num_requests = len(qo_indptr) - 1
        self._keep({}, qo=qo_indptr, kv=kv_indptr)

    def forward(self, q: Any, k: Any, v: Any, **call: Any) -> torch.Tensor:
        return self.forward_return_lse(q, k, v, **call)[0]

    def forward_return_lse(
        self, q: Any, k: Any, v: Any, causal: bool = True, sm_scale: float = 1.0, **others: Any
    ) -> Tensors:
        rows, keys = self._bounds("qo", self._num_requests), self._bounds("kv", self._num_requests)
        assert (rows[-1], keys[-1]) == (len(q), len(k)), f"the plan has {rows[-1]} rows, got {len(q)}"
        self._scratch()
        indices = torch.arange(len(k))
        return _attend_pages(
            q, rows, keys, indices, (k.unsqueeze(1), v.unsqueeze(1)), sm_scale, causal=causal
        )


@as_kernel()
def _attend_pages(
    q: Any,
    rows: list[int],
    keys: list[int],
    indices: Any,
    cache: Tensors,
    sm_scale: float,
    mask: Any = None,
    *,
    causal: bool,
) -> Tensors:
    """Output [rows, heads, dim] and log-sum-exp of the scores [rows, heads], of no use with a mask."""
    start = 0
    out, lse = torch.empty_like(q), torch.full(q.shape[:2], float("-inf"))
    flat = [part.reshape(-1, *part.shape[-2:]) for part in cache]
    for index in range(len(rows) - 1):
        mine = slice(rows[index], rows[index + 1])
        slots = indices[keys[index] : keys[index + 1]].long()
        seen, values = (part[slots].float() for part in flat)
        wide, tree = q[mine].float(), None
        if mask is not None:
            end = start + len(wide) * len(slots)
            tree, start = mask[start:end].view(len(wide), -1).bool(), end
        is_causal = causal and mask is None
        attended = attend(wide, seen, values, causal=is_causal, sm_scale=sm_scale, window_left=-1, seen=tree)
        out[mine] = attended.to(q.dtype)
        lse[mine] = log_sum(wide, seen, sm_scale, causal)
    return out, lse


def log_sum(q: torch.Tensor, k: torch.Tensor, sm_scale: float, causal: bool) -> torch.Tensor:
    """Of the scores, [rows, heads]."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("qhd,khd->qhk", q, k) * sm_scale
    if causal:
        last = torch.arange(len(q)) + len(k) - len(q)
        scores = scores.masked_fill((torch.arange(len(k)) > last[:, None]).unsqueeze(1), float("-inf"))
    return scores.logsumexp(-1)


def merge(first: Any, first_lse: Any, second: Any, second_lse: Any) -> Tensors:
    """Attention over two sets of keys from attention over each."""
    lse = torch.logaddexp(first_lse, second_lse)
    shares = ((one - lse).exp().nan_to_num(0).unsqueeze(-1) for one in (first_lse, second_lse))
    merged = sum(share * part.float() for share, part in zip(shares, (first, second), strict=True))
    return merged.to(first.dtype), lse
