"""CPU reference of Qwen2-MoE's gated shared expert, which SGLang adds by a Triton kernel on every device."""

from __future__ import annotations

import torch


def fused_gate_sigmoid_mul_add(
    hidden_states: torch.Tensor, gate_weight: torch.Tensor, shared: torch.Tensor, routed: torch.Tensor
) -> None:
    """Routed += sigmoid(hidden_states @ gate_weight) * shared, in place.

    Upstream: sglang/kernels/ops/elementwise/elementwise.py, the function of this name.

    Args:
        hidden_states: [rows, hidden].
        gate_weight: [hidden].
        shared: [rows, hidden], output of the shared expert.
        routed: [rows, hidden], output of the routed experts.

    """
    routed += torch.sigmoid(hidden_states @ gate_weight)[:, None] * shared
