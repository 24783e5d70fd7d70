"""CPU reference of a rank's experts under expert parallelism."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def experts_of_this_rank(layer: Any, x: torch.Tensor, topk_output: Any, config: Any) -> torch.Tensor:
    """The share of this rank's experts in the output of a mixture-of-experts layer.

    Upstream (srt/layers/moe/fused_moe_native.py) gives an expert of another rank the index -1 and then takes
    it for an index; here such entries are left out:

        y_t = sum over j with id_tj >= 0 of w_tj * W2_id (silu(W1_id x_t) * W3_id x_t)

    Args:
        layer: has `w13_weight` [experts, 2 * intermediate, hidden] (W1 above W3) and `w2_weight`.
        x: [rows, hidden].
        topk_output: has `topk_ids` and `topk_weights` [rows, k]; ids are this rank's own, from 0.
        config: upstream's runner configuration; only its activation is read.

    Returns:
        [rows, hidden].
    """
    if config.activation != "silu":
        raise NotImplementedError(f"activation {config.activation}")
    ids, weights = topk_output.topk_ids, topk_output.topk_weights
    output = torch.zeros_like(x)
    for expert in ids[ids >= 0].unique().tolist():
        rows, slots = torch.where(ids == expert)
        gate, up = functional.linear(x[rows], layer.w13_weight[expert]).chunk(2, dim=-1)
        expert_output = functional.linear(functional.silu(gate) * up, layer.w2_weight[expert])
        share = weights[rows, slots].to(x.dtype)[:, None]
        output.index_add_(0, rows, expert_output * share)
    return output
