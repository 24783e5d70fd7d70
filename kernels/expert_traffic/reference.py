"""Expert traffic in plain torch: the counting function of machines without a GPU."""

from __future__ import annotations

import torch
from sglang_layered_kernels.expert_traffic.layout import TOTALS, LayerCounters


def count(topk_ids: torch.Tensor, num_prompt_rows: int | torch.Tensor, counters: LayerCounters) -> None:
    """Add one call to a layer's counters, in place; `scratch` is not used.

    Args:
        topk_ids: int32 or int64 [num_rows, top_k] experts of each row; ids below 0 do not count.
        num_prompt_rows: rows [0, num_prompt_rows) are prompt rows; an int, or an integer tensor of one
            element.
        counters: the layer's.

    """
    num_experts = counters.tokens.shape[1]
    ids = topk_ids.long()
    rows = torch.arange(ids.shape[0], device=ids.device).unsqueeze(1)
    is_decode = (rows >= num_prompt_rows).long().expand_as(ids)
    is_known = (ids >= 0) & (ids < num_experts)
    bins = torch.where(
        is_known, is_decode * num_experts + ids, 2 * num_experts
    )  # the last bin is thrown away
    tokens = torch.zeros(2 * num_experts + 1, dtype=torch.int64, device=ids.device)
    tokens.scatter_add_(0, bins.flatten(), torch.ones_like(ids).flatten())
    tokens = tokens[:-1].view(2, num_experts)
    counters.tokens.add_(tokens)
    is_active = tokens > 0
    has_rows, num_active = is_active.any(dim=1).long(), is_active.sum(dim=1)
    num_union = is_active.any(dim=0).sum()
    num_strays = (ids >= num_experts).sum()
    one = torch.ones_like(num_union)
    counters.totals[: len(TOTALS)] += torch.stack([one, *has_rows, *num_active, num_union, num_strays])
