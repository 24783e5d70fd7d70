"""FlashAttention-3 of sgl_kernel in plain torch, bound to the real function's signature.

It checks what the kernel takes for granted: dtypes of the tables, one entry a request, rows that add up.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from flashinfer_emulation import attend

import moved_kernels
from emulated_flashinfer import log_sum, merge
from memory_watch import as_kernel


def emulate_flash_attention() -> None:
    """Put it where SGLang calls the kernels."""
    import sgl_kernel.flash_attn as kernels
    import sglang.kernels.ops.attention.flash_attention as ops
    import sglang.srt.layers.attention.flashattention_backend as backend

    global SIGNATURE
    SIGNATURE = inspect.signature(ops.flash_attn_with_kvcache)
    kernels.get_scheduler_metadata = lambda batch_size, *others, **more: torch.zeros(
        1 + 4 * batch_size, dtype=torch.int32
    )
    backend.normal_decode_set_metadata = set_decode_tables if moved_kernels.IS_0_5_23 else set_decode_metadata
    backend.merge_state_v2 = as_kernel()(merge)
    for module in (kernels, ops, backend):
        module.flash_attn_with_kvcache = flash_attn_with_kvcache
        module.flash_attn_varlen_func = flash_attn_varlen_func


SIGNATURE = inspect.signature(lambda: None)
NOT_EMULATED = {"sinks": None, "softcap": 0.0, "window_size": (-1, -1)}


@as_kernel("out")
def flash_attn_with_kvcache(*args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Output [rows, heads, dim]; with `return_softmax_lse` also log-sum-exp of the scores [heads, rows]."""
    given = SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    call = given.arguments
    for name, usual in NOT_EMULATED.items():
        value = call.get(name, usual)
        if value is not None and value != usual:
            raise NotImplementedError(f"flash_attn_with_kvcache: no reference for {name}={value}")
    q, keys, values = call["q"], call["k_cache"], call["v_cache"]
    pages, lengths, starts = call["page_table"], call["cache_seqlens"], call["cu_seqlens_q"]
    check_tables(pages, lengths, starts, q.shape[0])
    shape = (*q.shape[:2], values.shape[-1])
    out = q.new_empty(shape) if call.get("out") is None else call["out"].view(shape)
    sums = torch.full(q.shape[:2], float("-inf"))
    bounds = starts.tolist()
    for index, length in enumerate(lengths.tolist()):
        rows = slice(bounds[index], bounds[index + 1])
        if rows.start == rows.stop:
            continue
        if length == 0:  # what comes before a tree of drafts may all be on the tree's pages
            out[rows] = 0
            continue
        slots = slots_of(pages[index], length, keys.shape[1])
        seen, seen_values = (cache.flatten(0, 1)[slots] for cache in (keys, values))
        mine = q[rows]
        if call.get("qv") is not None:  # scores of latent attention: on the keys and on the values, too
            mine, seen = torch.cat([mine, call["qv"][rows]], -1), torch.cat([seen, seen_values], -1)
        out[rows] = attend_wide(mine, seen, seen_values, call["softmax_scale"], call["causal"])
        if call["return_softmax_lse"]:
            sums[rows] = log_sum(mine.float(), seen.float(), call["softmax_scale"], call["causal"])
    return (out, sums.T) if call["return_softmax_lse"] else out


@as_kernel("out")
def flash_attn_varlen_func(
    *,
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    softmax_scale: float,
    causal: bool,
    return_softmax_lse: bool = False,
    out: Any = None,
    **others: Any,
) -> torch.Tensor:
    """Rows of prompts on keys and values of their own."""
    if return_softmax_lse:
        raise NotImplementedError("flash_attn_varlen_func: no reference for return_softmax_lse")
    shape = (*q.shape[:2], v.shape[-1])
    out = q.new_empty(shape) if out is None else out.view(shape)
    rows, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    assert (rows[-1], keys[-1]) == (len(q), len(k)), f"the plan has {rows[-1]} rows, attention got {len(q)}"
    for index in range(len(rows) - 1):
        mine, seen = slice(rows[index], rows[index + 1]), slice(keys[index], keys[index + 1])
        out[mine] = attend_wide(q[mine], k[seen], v[seen], softmax_scale, causal)
    return out


def attend_wide(q: Any, k: Any, v: Any, sm_scale: float, causal: bool) -> torch.Tensor:
    """Attention in float32; values may be narrower than keys."""
    values = torch.nn.functional.pad(v.float(), (0, q.shape[-1] - v.shape[-1]))
    attended = attend(q.float(), k.float(), values, causal=causal, sm_scale=sm_scale, window_left=-1)
    return attended[..., : v.shape[-1]].to(q.dtype)


def check_tables(pages: Any, lengths: Any, starts: Any, num_rows: int) -> None:
    for table in (pages, lengths, starts):
        assert table.dtype == torch.int32, table.dtype
    sizes = pages.shape[0], lengths.shape[0], starts.shape[0] - 1
    assert len(set(sizes)) == 1, f"requests of the page table, lengths and row bounds: {sizes}"
    assert int(starts[-1]) == num_rows, f"the plan has {int(starts[-1])} rows, attention got {num_rows}"
    assert int(lengths.max()) <= pages.shape[1] * (1 << 20), "a request is longer than its page table"


def slots_of(pages: torch.Tensor, length: int, page_size: int) -> torch.Tensor:
    """KV slots [length] of one request."""
    tokens = torch.arange(length)
    return pages.long()[tokens // page_size] * page_size + tokens % page_size


@as_kernel("cache_seqlens", "cu_seqlens_k", "page_table")
def set_decode_metadata(
    cache_seqlens: Any,
    cu_seqlens_k: Any,
    page_table: Any,
    req_to_token: Any,
    req_pool_indices: Any,
    first_slots: Any,
    max_pages: int,
    seq_lens: Any,
    seq_len_delta: Any,
    page_size: int,
    *others: Any,
    **unused: Any,
) -> None:
    """In place, as captured kernels need it; without sliding windows."""
    cache_seqlens.copy_(seq_lens + seq_len_delta)
    cu_seqlens_k[1:].copy_(torch.cumsum(cache_seqlens, 0))
    columns = first_slots[:max_pages]
    page_table[:, : len(columns)].copy_(
        req_to_token[req_pool_indices.unsqueeze(1), columns.unsqueeze(0)] // page_size
    )


def set_decode_tables(
    cache_seqlens: Any,
    cu_seqlens_k: Any,
    page_table: Any,
    req_to_token: Any,
    req_pool_indices: Any,
    max_pages: int,
    seq_lens: Any,
    seq_len_delta: int,
    page_size: int,
    swa_page_table: None,
    **usual: Any,
) -> None:
    """The same by the arguments of SGLang 0.5.23, whose kernel finds the first slots of pages itself."""
    assert swa_page_table is None and not any(value for value in usual.values())
    first_slots = torch.arange(0, req_to_token.shape[1], page_size)
    tables = cache_seqlens, cu_seqlens_k, page_table, req_to_token, req_pool_indices, first_slots
    set_decode_metadata(*tables, max_pages, seq_lens, seq_len_delta, page_size)
