"""Attention in FP64, row by row: the oracle of the kernels here, and of `cpu/paged_attention.py`.

Shares no code with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def group_attention_reference(
    q: torch.Tensor,
    kv_cache: tuple[torch.Tensor, torch.Tensor],
    req_to_token: torch.Tensor,
    table_rows: Sequence[int],
    query_lens: Sequence[int],
    kv_lens: Sequence[int],
    *,
    scale: float,
    window_left: int = -1,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of each request's last `query_lens[i]` tokens; a decode request has one.

    Args:
        q: Queries [rows, heads, head_dim], requests one after the other.
        kv_cache: Keys and values, [slots, kv heads, head_dim]; values may be smaller.
        req_to_token: KV slot of each token [table rows, max tokens].
        table_rows: Row of each request in that table.
        query_lens: Query rows of each request.
        kv_lens: Tokens of each request, its query rows included.
        scale: Factor on the scores.
        window_left: Keys before its own that a query sees; -1 for all.
        soft_cap: Bound on the scores; 0 for none.
        sinks: Logits [heads], each of a key without a value; None for none.

    Returns:
        Output [rows, heads, size of a value], float64.
    """
    shape = (*q.shape[:2], kv_cache[1].shape[-1])
    output = torch.empty(shape, dtype=torch.float64, device=q.device)
    row = 0
    for table_row, query_len, kv_len in zip(table_rows, query_lens, kv_lens, strict=True):
        for position in range(kv_len - query_len, kv_len):
            oldest = 0 if window_left < 0 else max(0, position - window_left)
            slots = req_to_token[table_row, oldest : position + 1].long()
            keys, values = (cache[slots].double() for cache in kv_cache)
            output[row] = _attend(q[row].double(), keys, values, scale, soft_cap, sinks)
            row += 1
    if row != q.shape[0]:
        raise AssertionError(f"{q.shape[0]} query rows for requests of {row}")
    return output


def _attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    soft_cap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One row: q [heads, head_dim] on keys and values [keys, kv heads, head_dim]."""
    shared = q.shape[0] // keys.shape[1]
    keys, values = (cache.repeat_interleave(shared, dim=1) for cache in (keys, values))
    scores = torch.einsum("hd,khd->hk", q, keys) * scale
    if soft_cap > 0 and math.isfinite(soft_cap):
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None]], dim=1)
    return torch.einsum("hk,khd->hd", scores.softmax(dim=-1)[:, : len(keys)], values)
