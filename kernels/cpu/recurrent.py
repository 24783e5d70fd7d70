"""What of the references of recurrent models SGLang's CPU path finds where.

`FUNCTIONS` are imported from `sgl_kernel.mamba`, `OPERATORS` are taken from `torch.ops.sgl_kernel`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sglang_layered_kernels.cpu import fused_attention, gated_delta


def _by_name(*functions: Callable[..., Any]) -> Mapping[str, Callable[..., Any]]:
    return {function.__name__: function for function in functions}


FUNCTIONS = _by_name(
    gated_delta.causal_conv1d_fn_cpu,
    gated_delta.causal_conv1d_update_cpu,
    gated_delta.chunk_gated_delta_rule_cpu,
)
OPERATORS = _by_name(
    gated_delta.fused_gdn_gating_cpu,
    gated_delta.fused_rmsnorm_gated_cpu,
    gated_delta.fused_sigmoid_gating_delta_rule_update_cpu,
    fused_attention.fused_qk_gemma_rmsnorm_cpu,
    fused_attention.fused_qk_gemma_rmsnorm_with_gate_cpu,
    fused_attention.fused_qkvzba_split_reshape_cat_contiguous_cpu,
    fused_attention.fused_sigmoid_mul_cpu,
)
