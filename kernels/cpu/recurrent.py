"""What of the recurrent layers' references SGLang's CPU path finds under which name.

`FUNCTIONS` are imported from `sgl_kernel.mamba`, `OPERATORS` are taken from `torch.ops.sgl_kernel`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sglang_layered_kernels.cpu import gated_delta

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "causal_conv1d_fn_cpu": gated_delta.causal_conv1d_fn_cpu,
    "causal_conv1d_update_cpu": gated_delta.causal_conv1d_update_cpu,
    "chunk_gated_delta_rule_cpu": gated_delta.chunk_gated_delta_rule_cpu,
}
OPERATORS: Mapping[str, Callable[..., Any]] = {
    "fused_gdn_gating_cpu": gated_delta.fused_gdn_gating_cpu,
    "fused_rmsnorm_gated_cpu": gated_delta.fused_rmsnorm_gated_cpu,
    "fused_sigmoid_gating_delta_rule_update_cpu": gated_delta.fused_sigmoid_gating_delta_rule_update_cpu,
}
