"""CPU reference of experts whose routing weight scales their input (Llama 4): SGLang's own refuses that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch


def weighting_input(experts: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`experts` with that done before; with one expert a row, which is all that such models choose.

    Upstream: srt/layers/moe/fused_moe_native.py `moe_forward_native`, whose arguments it takes.
    """

    def weighted(layer: Any, x: torch.Tensor, topk_output: Any, moe_runner_config: Any) -> torch.Tensor:
        if moe_runner_config.apply_router_weight_on_input:
            weights = topk_output.topk_weights  # [rows, 1]
            x = x * weights.to(x.dtype)
            topk_output = topk_output._replace(topk_weights=torch.ones_like(weights))
            moe_runner_config = replace(moe_runner_config, apply_router_weight_on_input=False)
        return experts(layer, x, topk_output, moe_runner_config)

    return weighted
