"""CPU reference of experts whose rows have adapters, for which SGLang has kernels of a GPU only."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def experts_with_adapters(module: Any, rows: torch.Tensor, chosen: Any, info: Any, **_: Any) -> torch.Tensor:
    """What the experts of a layer give [rows, hidden], each row with its own adapter.

    Upstream: srt/lora/layers.py `FusedMoEWithLoRA._forward_with_lora`, in whose place it stands; the pool's
    weights, already scaled, as srt/lora/lora_moe_runners.py `LoRAInfo` has them. Gated experts with SiLU.

    Args:
        module: the wrapper; its base layer has w13_weight [experts, 2 * inner, hidden], the gate first, and
            w2_weight [experts, hidden, inner].
        rows: [rows, hidden].
        chosen: SGLang's TopKOutput.
        info: SGLang's LoRAInfo of the batch; `token_lora_mapping` [rows] says where a row's adapter is.

    """
    weights, experts, _ = chosen
    slots, layer, output = info.token_lora_mapping.long(), module.base_layer, torch.zeros_like(rows)
    for expert in experts.unique().tolist():
        at, choice = (experts == expert).nonzero(as_tuple=True)
        slot, x = slots[at], rows[at]
        enabled = info.adapter_enabled[slot].bool()[:, None]
        down, up = info.gate_up_lora_a_weights[slot, expert], info.gate_up_lora_b_weights[slot, expert]
        halves = torch.einsum("nh,nrh->nr", x, down).unflatten(1, (2, -1))  # of gate and up
        change = torch.einsum("ngr,ngir->ngi", halves, up.unflatten(1, (2, -1))).flatten(1)
        gate, inner = (x @ layer.w13_weight[expert].t() + change.where(enabled, 0)).chunk(2, dim=1)
        inner = functional.silu(gate) * inner
        down, up = info.down_lora_a_weights[slot, expert], info.down_lora_b_weights[slot, expert]
        change = torch.einsum("nr,nhr->nh", torch.einsum("ni,nri->nr", inner, down), up)
        result = inner @ layer.w2_weight[expert].t() + change.where(enabled, 0)
        output.index_add_(0, at, result * weights[at, choice, None])
    return output
