"""CPU references of Kimi Delta Attention (KDA): a gated delta net whose state decays by key channel.

A decay exp(g) [key size] for every token and head takes the place of one number (`gated_delta`): a token
changes the matrix S [v, k] and reads it by

    S = S exp(g) (column by column);  S = S + b (v - S k) k^T;  out = S q / sqrt(k's size)

On a CPU SGLang has none of these functions: what its kernels are called with is met here under their names.
Upstream: srt/layers/attention/linear/kernels/kda_triton.py, srt/models/kimi_linear.py.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang_layered_kernels.cpu.gated_delta import chunk_gated_delta_rule_cpu
from torch.nn import functional


def kda_gate(
    raw: torch.Tensor, decay: torch.Tensor, dt_bias: torch.Tensor, lower_bound: float | None = None
) -> torch.Tensor:
    """Log of the decay of every token, head and key channel.

    Args:
        raw: [..., heads, key size], what the model projects for it.
        decay: [heads] elements, A_log.
        dt_bias: [heads * key size].
        lower_bound: asks for another gate, Kimi-K3's: a share of this number, which is below 0.
    """
    wide = torch.promote_types(raw.dtype, torch.float32)
    bias = dt_bias.to(wide).view(raw.shape[-2:])
    rate = decay.to(wide).exp().view(-1, 1)
    if lower_bound is not None:
        return lower_bound * torch.sigmoid(rate * (raw.to(wide) + bias))
    return -rate * functional.softplus(raw.to(wide) + bias)


def chunk_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    lower_bound: float | None = None,
    output_intermediate_states: bool = False,
    **slots: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Prompts through the recurrence.

    Args:
        q: [1, tokens, heads, key size], of any length; normed here.
        k: as q.
        v: [1, tokens, heads, value size].
        g: as q, the gate before its activation.
        beta: [1, tokens, heads], the step.
        A_log: [heads] elements.
        dt_bias: [heads * key size].
        lower_bound: of the gate, see `kda_gate`.
        output_intermediate_states: give the states on the way too.
        slots: `initial_state`, `initial_state_indices`, `cu_seqlens`, as of `chunk_gated_delta_rule_cpu`.

    Returns:
        The output, as v; with states on the way, those before each chunk of 64 tokens beside it.
    """
    gate = kda_gate(g, A_log, dt_bias, lower_bound)
    output, _, kept = chunk_gated_delta_rule_cpu(q, k, v, gate, beta, **slots)
    return (output, kept) if output_intermediate_states else output


def fused_sigmoid_gating_delta_rule_update(
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    initial_state_source: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    lower_bound: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """The recurrence's next token of every request; `a` and `b` are its gate and step before activation."""
    output, _, _ = chunk_gated_delta_rule_cpu(
        q,
        k,
        v,
        kda_gate(a.reshape(q.shape), A_log, dt_bias, lower_bound),
        torch.sigmoid(b.float()).reshape(v.shape[:-1]),
        initial_state=initial_state_source,
        initial_state_indices=initial_state_indices,
        cu_seqlens=cu_seqlens,
    )
    return output


def sigmoid_gated_norm(x: torch.Tensor, weight: torch.Tensor, gate: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of rows x [..., size], scaled by weight [size] and by sigmoid(gate) of as many elements."""
    normed = functional.rms_norm(x.float(), x.shape[-1:], eps=eps)
    return (weight * normed * torch.sigmoid(gate.float()).view(x.shape)).to(x.dtype)
