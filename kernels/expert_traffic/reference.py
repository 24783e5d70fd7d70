"""Expert traffic in plain torch: the counting function of machines without a GPU."""

from __future__ import annotations

import torch
from sglang_layered_kernels.expert_traffic.layout import TOTALS, LayerCounters


def count(topk_ids: torch.Tensor, split: int | torch.Tensor, counters: LayerCounters) -> None:
    """Add one call to a layer's counters, in place; `scratch` is not used.

    Args:
        topk_ids: int32 or int64 [num_rows, top_k] experts of each row; ids below 0 do not count.
        split: rows [0, split) are prompt rows; an int, or a tensor of two: prompt rows, and rows that count.
        counters: the layer's.

    """
    num_experts, num_rows = counters.tokens.shape[1], topk_ids.shape[0]
    num_prompt_rows, num_real_rows = (split, num_rows) if isinstance(split, int) else split.tolist()
    ids = topk_ids[:num_real_rows].flatten()
    cut = min(num_prompt_rows, num_real_rows) * topk_ids.shape[1]
    # One bin below all experts for padding, one above for ids that no expert has.
    shifted = ids.clamp(-1, num_experts).add_(1)
    prompt = torch.bincount(shifted[:cut], minlength=num_experts + 2)
    decode = torch.bincount(shifted[cut:], minlength=num_experts + 2)
    tokens = torch.stack([prompt[1:-1], decode[1:-1]])
    counters.tokens.add_(tokens)
    is_active = tokens > 0
    num_prompt, num_decode = is_active.sum(dim=1).tolist()
    num_union = int(is_active.any(dim=0).sum())
    num_strays = int(prompt[-1] + decode[-1])
    values = [1, num_prompt > 0, num_decode > 0, num_prompt, num_decode, num_union, num_strays]
    counters.totals[: len(TOTALS)] += torch.tensor(values)
