"""CPU reference of adapters of latent attention's `kv_b_proj`, for which SGLang has Triton kernels alone.

Attention in the latent space never calls that projection: its halves are multiplied into queries and outputs,
and so the adapter's must be. Upstream: sglang/kernels/ops/gemm/kv_b_lora_absorbed.py, functions of these
names; `info` is SGLang's LoRABatchInfo.

`down` [adapters, ranks, latent] and `up` [adapters, heads * (keys + values), ranks] are the pool's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def step_a_q_fwd(queries: torch.Tensor, up: torch.Tensor, info: Any, num_expanded: int) -> torch.Tensor:
    """Queries [rows, heads, keys] through the key half of `up`: [rows, heads, ranks]."""
    num_rows, num_heads, num_keys = queries.shape
    out = queries.new_zeros(num_rows, num_heads, up.shape[2])
    for rows, slot, rank in _adapted(info):
        half = up[slot].unflatten(0, (num_heads, num_expanded))[:, :num_keys, :rank]
        out[rows, :, :rank] = torch.einsum("nhk,hkr->nhr", queries[rows], half)
    return out


def step_b_q_fwd(reduced: torch.Tensor, down: torch.Tensor, info: Any, base: torch.Tensor) -> torch.Tensor:
    """Add what `step_a_q_fwd` gave, through `down`, to `base` [rows, heads, latent]."""
    for rows, slot, rank in _adapted(info):
        base[rows] += info.scalings[slot] * (reduced[rows, :, :rank] @ down[slot, :rank])
    return base


def step_a_v_fwd(outputs: torch.Tensor, down: torch.Tensor, info: Any) -> torch.Tensor:
    """Attention's outputs [rows, heads, latent] through `down`: [rows, heads, ranks]."""
    out = outputs.new_zeros(*outputs.shape[:2], down.shape[1])
    for rows, slot, rank in _adapted(info):
        out[rows, :, :rank] = outputs[rows] @ down[slot, :rank].t()
    return out


def step_b_v_fwd(
    reduced: torch.Tensor, up: torch.Tensor, info: Any, base: torch.Tensor, num_keys: int, num_values: int
) -> torch.Tensor:
    """Add what `step_a_v_fwd` gave, through the value half of `up`, to `base` [rows, heads, values]."""
    for rows, slot, rank in _adapted(info):
        half = up[slot].unflatten(0, (reduced.shape[1], num_keys + num_values))[:, num_keys:, :rank]
        base[rows] += info.scalings[slot] * torch.einsum("nhr,hvr->nhv", reduced[rows, :, :rank], half)
    return base


FUNCTIONS = {
    function.__name__: function for function in (step_a_q_fwd, step_b_q_fwd, step_a_v_fwd, step_b_v_fwd)
}


def _adapted(info: Any) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Rows that share an adapter, its place in the pool and its rank; rows without one are left out."""
    ends, ranks = info.seg_indptr.tolist(), info.lora_ranks.tolist()
    for segment, slot in enumerate(info.weight_indices.tolist()[: info.num_segments]):
        rows = torch.arange(ends[segment], ends[segment + 1], device=info.seg_indptr.device)
        if ranks[slot]:
            yield rows if info.permutation is None else info.permutation[rows].long(), slot, ranks[slot]
