"""Has experts computed by kernels/cpu in the models that our attention for CPUs serves.

Upstream: srt/layers/quantization/unquant.py `UnquantizedFusedMoEMethod.forward_cpu`. Without AMX's kernels it
calls srt/layers/moe/fused_moe_native.py `moe_forward_native`: one expert after another, of SiLU only, with
experts of other ranks taken for indices, and with torch.compile, so a compiler, for GPT-OSS.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
from sglang.srt.utils import use_intel_amx_backend
from sglang_layered_kernels.cpu.experts import (
    Experts,
    chosen_experts,
    clamped_halves,
    clamped_swiglu,
    gated_gelu,
    gated_silu,
    gated_situ,
)

SITU_BETA = 4.0  # SGLang's where a configuration says none, srt/layers/moe/fused_moe_native.py
Gate = Callable[[torch.Tensor], torch.Tensor]


def take_experts(model: torch.nn.Module) -> None:
    """Let every layer of plain weights that we know compute its experts with ours; others stay SGLang's.

    A layer has a method of its own, so a model that other attention serves in this process is left alone.
    """
    for layer in model.modules():
        if isinstance(layer, FusedMoE) and type(layer.quant_method) is UnquantizedFusedMoEMethod:
            gate = _gate(layer.moe_runner_config)
            if gate is not None and not use_intel_amx_backend(layer):
                layer.quant_method._forward_method = partial(_forward, gate)


def _forward(gate: Gate, layer: Any, dispatch_output: Any) -> StandardCombineInput:
    """In place of `UnquantizedFusedMoEMethod.forward_cpu`."""
    weights, chosen, _ = dispatch_output.topk_output
    experts = Experts(
        layer.w13_weight,
        layer.w2_weight,
        gate,
        getattr(layer, "w13_weight_bias", None),
        getattr(layer, "w2_weight_bias", None),
        layer.moe_runner_config.apply_router_weight_on_input,
    )
    return StandardCombineInput(chosen_experts(dispatch_output.hidden_states, weights, chosen, experts))


def _gate(config: Any) -> Gate | None:
    """What is between an expert's two matrices by SGLang's MoeRunnerConfig; None if ours do not know it."""
    clamp, alpha = config.gemm1_clamp_limit, config.gemm1_alpha
    if not config.is_gated or config.no_combine or config.swiglu_limit is not None:
        return None
    if config.activation == "situ":
        return partial(gated_situ, beta=SITU_BETA if alpha is None else alpha, limit=clamp)
    if alpha is not None:
        if config.activation != "silu" or clamp is None:
            return None
        gate = clamped_swiglu if config.gate_up_interleaved else clamped_halves
        return partial(gate, alpha=alpha, limit=clamp)
    if clamp is not None:
        return None
    return {"silu": gated_silu, "gelu": gated_gelu}.get(config.activation)
