"""CPU references of what Qwen3.5 fuses around its attention: cuts, norms of queries and keys, output gates.

Signatures are those with which SGLang calls its own CPU kernels (srt/models/qwen3_5.py there).
"""

from __future__ import annotations

import torch
from torch.nn import functional


def fused_qkvzba_split_reshape_cat_contiguous_cpu(
    qkvz: torch.Tensor, ba: torch.Tensor, key_heads: int, value_heads: int, key_size: int, value_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut the projections of a gated delta net, whose parts lie one after another.

    Args:
        qkvz: [rows, 2 key heads x key size + 2 value heads x value size], queries, keys, values and gates.
        ba: [rows, 2 value heads], steps and decays.
        key_heads: Heads of queries and of keys.
        value_heads: Heads of values and of gates.
        key_size: Of a head.
        value_size: Of a head.

    Returns:
        Queries, keys and values [rows, ...] in one tensor, gates [rows, value heads, value size], steps and
        decays [rows, value heads].
    """
    width = value_heads * value_size
    mixed, gates = qkvz.split([2 * key_heads * key_size + width, width], dim=-1)
    steps, decays = ba.chunk(2, dim=-1)
    return mixed.contiguous(), gates.reshape(-1, value_heads, value_size), steps, decays


def fused_qk_gemma_rmsnorm_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    head_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norms of each head of queries and keys [rows, heads x head size], scaled by 1 + weight [head size].

    Returns:
        Both as [rows x heads, head size].
    """
    return _norm(q, q_weight, eps, head_size), _norm(k, k_weight, eps, head_size)


def fused_qk_gemma_rmsnorm_with_gate_cpu(
    q_gate: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    head_size: int,
    num_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As above, of queries that lie beside their gates: q_gate [rows, heads x (query, gate) x head size].

    Returns:
        Queries and keys [rows x heads, head size], gates [rows, heads x head size].
    """
    q, gate = q_gate.view(len(q_gate), num_heads, 2, head_size).unbind(dim=2)
    q, k = fused_qk_gemma_rmsnorm_cpu(q, k, q_weight, k_weight, eps, head_size)
    return q, k, gate.reshape(len(q_gate), -1)


def fused_sigmoid_mul_cpu(x: torch.Tensor, gate: torch.Tensor, inplace: bool = True) -> torch.Tensor:
    """Rows x [rows, width] times sigmoid(gate), of as many elements; in place, if asked."""
    scaled = x * torch.sigmoid(gate.reshape(x.shape))
    return x.copy_(scaled) if inplace else scaled


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float, head_size: int) -> torch.Tensor:
    heads = x.reshape(-1, head_size).float()
    normed = functional.rms_norm(heads, (head_size,), eps=eps) * (1.0 + weight.float())
    return normed.to(x.dtype)
