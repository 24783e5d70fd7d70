"""Expert traffic on the host: the counting function of machines without a GPU.

It works on the tensors' memory through numpy, whose calls cost a fifth of torch's on a few hundred ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sglang_layered_kernels.expert_traffic.layout import TOTALS

Call = tuple[int, torch.Tensor, int | torch.Tensor]  # layer, topk_ids, split


def count(calls: Sequence[Call], tokens: torch.Tensor, totals: torch.Tensor) -> None:
    """Add calls to the counters of all layers, in place. All tensors are on the CPU.

    Args:
        calls: layer, `topk_ids` (int32 or int64 [num_rows, top_k] experts of each row; ids below 0 do not
            count) and `split` (rows [0, split) are prompt rows; or a tensor of two: prompt rows, and rows
            that count) of each call. A layer may be called several times.
        tokens: int64 [num_layers, 2, num_experts].
        totals: int64 [num_layers, NUM_TOTALS].

    """
    num_experts, layers = tokens.shape[2], [layer for layer, _, _ in calls]
    width = num_experts + 2  # one bin below all experts for padding, one above for ids that no expert has
    cuts = [_cuts(ids, split) for _, ids, split in calls]
    parts = [ids.numpy()[:end].ravel() for (_, ids, _), (_, end) in zip(calls, cuts, strict=True)]
    sizes = [
        size * ids.shape[1]
        for (_, ids, _), (cut, end) in zip(calls, cuts, strict=True)
        for size in (cut, end - cut)
    ]
    bins = np.concatenate(parts).clip(-1, num_experts)
    bins += np.repeat(np.arange(1, 2 * width * len(calls), width, dtype=bins.dtype), sizes)
    counts = np.bincount(bins, minlength=2 * width * len(calls)).reshape(-1, 2, width)
    by_expert = counts[:, :, 1:-1]
    is_active = by_expert != 0
    rows = np.empty((len(calls), len(TOTALS)), dtype=np.int64)
    rows[:, 0] = 1
    rows[:, 3:5] = is_active.sum(axis=2)
    rows[:, 1:3] = rows[:, 3:5] != 0
    rows[:, 5] = (is_active[:, 0] | is_active[:, 1]).sum(axis=1)
    rows[:, 6] = counts[:, 0, -1] + counts[:, 1, -1]
    tokens_of, totals_of = tokens.numpy(), totals.numpy()
    for layer, more_tokens, more in zip(layers, by_expert, rows, strict=True):  # a layer may come twice
        tokens_of[layer] += more_tokens
        totals_of[layer, : len(TOTALS)] += more


def _cuts(topk_ids: torch.Tensor, split: int | torch.Tensor) -> tuple[int, int]:
    """Where prompt rows end, and where rows end that count."""
    num_rows = topk_ids.shape[0]
    if isinstance(split, int):
        return split, num_rows
    num_prompt_rows, num_real_rows = split.tolist()
    end = min(num_real_rows, num_rows)
    return min(num_prompt_rows, end), end
