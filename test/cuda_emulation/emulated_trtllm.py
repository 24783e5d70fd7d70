"""Blackwell's TRT-LLM attention (FlashInfer) in plain torch, with the real functions' names of arguments."""

from __future__ import annotations

from typing import Any

import torch
from flashinfer_emulation import attend

from emulated_flash_attention import check_tables, slots_of
from memory_watch import as_kernel


def emulate_trtllm() -> None:
    """Put it where SGLang's trtllm_mha backend calls FlashInfer."""
    import flashinfer

    flashinfer.decode.trtllm_batch_decode_with_kv_cache = decode
    flashinfer.prefill.trtllm_batch_context_with_kv_cache = context


@as_kernel("out", "workspace_buffer")
def decode(*, query: Any, seq_lens: Any, out: Any = None, **call: Any) -> torch.Tensor:
    starts = torch.arange(len(seq_lens) + 1, dtype=torch.int32)
    return context.__wrapped__(query=query, seq_lens=seq_lens, cum_seq_lens_q=starts, out=out, **call)


@as_kernel("out", "workspace_buffer")
def context(
    *,
    query: Any,
    kv_cache: Any,
    workspace_buffer: Any,
    block_tables: Any,
    seq_lens: Any,
    cum_seq_lens_q: Any,
    bmm1_scale: float,
    window_left: int = -1,
    sinks: Any = None,
    out: Any = None,
    **others: Any,
) -> torch.Tensor:
    """Causal attention; caches are [pages, kv heads, page size, head size]. Every call writes the scratch."""
    assert sinks is None and window_left == -1
    check_tables(block_tables, seq_lens, cum_seq_lens_q, len(query))
    workspace_buffer[:1].fill_(0)
    out = torch.empty_like(query) if out is None else out
    keys, values = (cache.transpose(1, 2) for cache in kv_cache)
    bounds = cum_seq_lens_q.tolist()
    for index, length in enumerate(seq_lens.tolist()):
        rows = slice(bounds[index], bounds[index + 1])
        slots = slots_of(block_tables[index], length, keys.shape[1])
        seen = (cache.flatten(0, 1)[slots].float() for cache in (keys, values))
        attended = attend(query[rows].float(), *seen, causal=True, sm_scale=bmm1_scale, window_left=-1)
        out[rows] = attended.to(out.dtype)
    return out
