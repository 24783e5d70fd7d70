"""What families need on a CPU: SGLang's flags, and our references for what it gets wrong or lacks there.

It sets the environment, so it is imported before SGLang.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # the slots of sliding-window pools come from a Triton kernel
os.environ["TORCH_COMPILE_DISABLE"] = "1"  # SGLang compiles how experts are chosen, for many seconds a family
# Short convolutions keep their last inputs in bfloat16 by default, whatever the model is: then tokens are not
# Hugging Face's, and depend on where a prompt is cut.
os.environ["SGLANG_MAMBA_CONV_DTYPE"] = "float32"
os.environ["SGLANG_OPT_USE_BF16_ROUTER_GEMM"] = "0"  # so MiniMax-M3's routers
sys.path[:0] = [str(Path(__file__).parents[1] / "runner"), str(Path(__file__).parents[1])]

from tiny_models import use_the_cpu  # noqa: E402

use_the_cpu()

import torch  # noqa: E402
from sglang.kernels.ops.attention.fla.fused_norm_gate import FusedRMSNormGated  # noqa: E402
from sglang.kernels.ops.attention.fla.layernorm_gated import RMSNorm as RMSNormGated  # noqa: E402
from sglang.srt.layers import attn_residual  # noqa: E402
from sglang.srt.layers.attention import minimax_sparse_backend  # noqa: E402
from sglang.srt.layers.attention.linear import kda_backend  # noqa: E402
from sglang.srt.layers.attention.linear.kernels import kda_triton  # noqa: E402
from sglang.srt.layers.attention.mamba import mamba  # noqa: E402
from sglang.srt.layers.attention.minimax_sparse_ops import minimax_sparse  # noqa: E402
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput  # noqa: E402
from sglang.srt.layers.moe.topk import TopK  # noqa: E402
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod  # noqa: E402
from sglang.srt.model_executor import model_runner  # noqa: E402
from sglang.srt.models import (  # noqa: E402
    ernie4,
    gemma4_causal,
    kimi_k3,
    kimi_linear,
    lfm2,
    lfm2_moe,
    llama4,
    qwen2_moe,
)
from sglang_layered_kernels.cpu import block_sparse, kimi_delta, mamba2  # noqa: E402
from sglang_layered_kernels.cpu.gated_delta import (  # noqa: E402
    causal_conv1d_fn_cpu,
    causal_conv1d_update_cpu,
    fused_rmsnorm_gated_cpu,
)
from sglang_layered_kernels.cpu.plain_experts import plain_experts, wide_product  # noqa: E402
from sglang_layered_kernels.cpu.shared_expert import fused_gate_sigmoid_mul_add  # noqa: E402
from transformers import PretrainedConfig  # noqa: E402

CPU_OPERATORS = torch.library.Library("aten", "IMPL")

# Without a limit the pool of states takes most of the machine's memory.
FEW_STATES = {"max_mamba_cache_size": 64}
# On a CPU SGLang keeps states for its prefix cache this way only, without overlap.
RECURRENT = {"mamba_radix_cache_strategy": "no_buffer", "disable_overlap_schedule": True, **FEW_STATES}
FLAGS: dict[str, dict[str, Any]] = {
    "qwen3_next": RECURRENT,
    "qwen3_5_moe": RECURRENT,
    "kimi_k3": RECURRENT,
    "kimi_linear": RECURRENT,
    "nemotron_h": RECURRENT | {"moe_runner_backend": "triton"},
    "lfm2_moe": RECURRENT,
    "lfm2": RECURRENT,
    "mimo": {"enable_expert_traffic_metrics": False},  # dense
    "gpt_oss": {"moe_runner_backend": "triton"},
    "llama4": {"disable_hybrid_swa_memory": True},
    "gemma4": {"disable_hybrid_swa_memory": True},
    "gemma4_moe": {"disable_hybrid_swa_memory": True},
}


def use_references() -> None:
    """Put our references in the place of what SGLang gets wrong or lacks on a CPU."""
    qwen2_moe.fused_gate_sigmoid_mul_add = fused_gate_sigmoid_mul_add
    RMSNormGated.forward = FusedRMSNormGated.forward = gated_norm
    model_runner.adjust_config_with_unaligned_cpu_tp = with_vision_config(
        model_runner.adjust_config_with_unaligned_cpu_tp
    )
    TopK.forward_native = scaled_afterwards(TopK.forward_native)
    for sparse in (block_sparse.minimax_sparse_prefill, block_sparse.minimax_sparse_decode):
        for module in (minimax_sparse_backend, minimax_sparse):  # 0.5.23 imports them where it calls them
            setattr(module, sparse.__name__, sparse)
    experts = UnquantizedFusedMoEMethod
    gemma4_causal.Gemma4Router.fuse_scale = fuse_scale
    mamba.mamba_chunk_scan_combined = chunk_scan
    mamba.selective_state_update = mamba2.selective_state_update
    mamba.causal_conv1d_fn_triton = causal_conv1d_fn_cpu
    mamba.causal_conv1d_update_triton = causal_conv1d_update_cpu
    lfm2.causal_conv1d_fn = lfm2_moe.causal_conv1d_fn = causal_conv1d_fn_cpu
    lfm2.causal_conv1d_update = lfm2_moe.causal_conv1d_update = causal_conv1d_update_cpu
    CPU_OPERATORS.impl("mm.dtype", wide_product, "CPU")
    if not torch.cuda.is_available():  # where 0.5.23 makes a norm of Qwen3-Next, whatever the server's device
        torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]
    experts.forward_native = partialmethod(some_without_gates, experts.forward_native)
    # What these two do on another device without CUDA's kernels is right on a CPU too: a router's bias of one
    # dimension, which the top-k takes; and rotated queries and keys, which a CPU returns, not in place.
    ernie4._is_npu = llama4._is_npu = True
    use_kda_references()


def gated_norm(norm: Any, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """SGLang has a kernel with AMX; Triton's interpreter takes two thirds of Qwen3-Next's time for it."""
    return fused_rmsnorm_gated_cpu(x, norm.weight, gate, norm.eps)


def chunk_scan(*args: Any, return_track_states: bool = False, **kwargs: Any) -> tuple[Any, ...]:
    """0.5.23 also asks for states on the way to its prefix cache, of which `no_buffer` keeps none."""
    states = mamba2.mamba_chunk_scan_combined(*args, **kwargs)
    return (*states, None) if return_track_states else states


def with_vision_config(adjust: Callable[..., Any]) -> Callable[..., Any]:
    """MiniMax-M3's is plain data in SGLang, which asks it for attributes on a CPU only."""

    def run(model_config: Any, *args: Any) -> Any:
        config = model_config.hf_config
        if isinstance(getattr(config, "vision_config", None), dict):
            config.vision_config = PretrainedConfig(**config.vision_config)
        return adjust(model_config, *args)

    return run


def scaled_afterwards(choose: Callable[..., Any]) -> Callable[..., Any]:
    """SGLang's choice of experts for a CPU refuses to scale their weights unless it chooses by groups."""

    def run(topk: TopK, *args: Any, **kwargs: Any) -> Any:
        config = topk.topk_config
        if config.use_grouped_topk or not config.apply_routed_scaling_factor_on_output:
            return choose(topk, *args, **kwargs)
        topk.topk_config = replace(config, apply_routed_scaling_factor_on_output=False)
        output = choose(topk, *args, **kwargs)
        topk.topk_config = config
        return output._replace(topk_weights=output.topk_weights * config.routed_scaling_factor)

    return run


class SigmoidGatedNorm(FusedRMSNormGated):
    """SGLang's on a CPU knows another gate only."""

    def forward(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return kimi_delta.sigmoid_gated_norm(x, self.weight, g, self.eps)


def use_kda_references() -> None:
    """SGLang has no KDA on a CPU: it imports none of its kernels there, and asks for CUDA streams.

    Kimi-K3 has none of its own on AMD's GPUs, where SGLang also leaves out a kernel for decode rows.
    """
    kimi_linear.get_stream = lambda name: None
    kimi_k3._is_hip = True
    kimi_linear.FusedRMSNormGated = kimi_k3.FusedRMSNormGated = SigmoidGatedNorm
    kimi_k3._add3 = added
    attn_residual._FAST_SUPPORTED = False
    attn_residual._aggregate_fused = weighed
    kda_backend.causal_conv1d_fn = causal_conv1d_fn_cpu
    for function in (kimi_delta.chunk_kda, kimi_delta.fused_sigmoid_gating_delta_rule_update):
        setattr(kda_triton, function.__name__, function)


def added(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None, **_: Any) -> torch.Tensor:
    """SGLang's sum of three is a CUDA kernel."""
    return a + b if c is None else a + b + c


def weighed(prefix: torch.Tensor, blocks: torch.Tensor, *args: Any) -> torch.Tensor:
    """Kimi-K3's mean of blocks, and the norm: SGLang's own words in torch instead of its Triton kernels."""
    *weighing, norm = args
    return norm(attn_residual.aggregate_stream_torch(prefix, blocks, *weighing))


def some_without_gates(
    method: UnquantizedFusedMoEMethod, with_gates: Callable[..., Any], layer: Any, dispatch_output: Any
) -> StandardCombineInput:
    """Nemotron-H's experts, weighted as SGLang's GPU kernels do; those of all others as before."""
    config, choice = layer.moe_runner_config, dispatch_output.topk_output
    if config.activation != "relu2":
        return with_gates(method, layer, dispatch_output)
    output = plain_experts(
        dispatch_output.hidden_states,
        layer.w13_weight,
        layer.w2_weight,
        choice.topk_weights,
        choice.topk_ids,
        config.routed_scaling_factor or 1.0,
    )
    return StandardCombineInput(hidden_states=output)


def fuse_scale(router: Any, fuse: Callable[[Any], None] = gemma4_causal.Gemma4Router.fuse_scale) -> None:
    """SGLang's own puts the router's scale into its norm, which leaves it out on a CPU and not with CUDA."""
    fuse(router)
    router.norm.with_scale = True
