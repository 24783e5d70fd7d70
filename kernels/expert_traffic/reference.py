"""Expert traffic on the host: the counting function of machines without a GPU.

It works on the tensors' memory through numpy, whose calls cost a fifth of torch's on a few hundred ids.
"""

from __future__ import annotations

import numpy as np
import torch
from sglang_layered_kernels.expert_traffic.layout import TOTALS, LayerCounters


def count(topk_ids: torch.Tensor, split: int | torch.Tensor, counters: LayerCounters) -> None:
    """Add one call to a layer's counters, in place; `scratch` is not used. All tensors are on the CPU.

    Args:
        topk_ids: int32 or int64 [num_rows, top_k] experts of each row; ids below 0 do not count.
        split: rows [0, split) are prompt rows; an int, or a tensor of two: prompt rows, and rows that count.
        counters: the layer's.

    """
    tokens, totals = counters.tokens.numpy(), counters.totals.numpy()
    num_experts, num_rows = tokens.shape[1], topk_ids.shape[0]
    num_prompt_rows, num_real_rows = (split, num_rows) if isinstance(split, int) else split.tolist()
    # One bin below all experts for padding, one above for ids that no expert has.
    bins = topk_ids.numpy()[:num_real_rows].clip(-1, num_experts) + 1
    prompt = np.bincount(bins[:num_prompt_rows].ravel(), minlength=num_experts + 2)
    decode = np.bincount(bins[num_prompt_rows:].ravel(), minlength=num_experts + 2)
    num_strays = prompt[-1] + decode[-1]
    prompt, decode = prompt[1:-1], decode[1:-1]
    tokens[0] += prompt
    tokens[1] += decode
    num_prompt, num_decode = np.count_nonzero(prompt), np.count_nonzero(decode)
    num_union = np.count_nonzero(prompt + decode)
    values = (1, num_prompt > 0, num_decode > 0, num_prompt, num_decode, num_union, num_strays)
    totals[: len(TOTALS)] += values
