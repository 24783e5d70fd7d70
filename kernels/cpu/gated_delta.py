"""CPU references of gated delta nets: the short convolution, the gates, the recurrence and the gated norm.

A request's state lies at its slot: the last `width - 1` inputs of the convolution, and a matrix a value head.
With k, q of length 1, decay exp(g) and step b, a token changes the matrix S [v, k] and reads it:

    S = exp(g) S;  S = S + b (v - S k) k^T;  out = S q / sqrt(k's size)

Arithmetic is in float32, or in float64 where the state is, token by token. Signatures are those with which
SGLang calls its own CPU kernels (srt/layers/attention/linear/gdn_backend.py and kernels/gdn_triton.py there).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from sglang_layered_kernels.cpu.draft_states import along_drafts, convolve_drafts, parents_of
from torch.nn import functional

CHUNK_TOKENS = 64  # SGLang keeps a prompt's state for its prefix cache at multiples of this
NORM_EPS = 1e-6


def causal_conv1d_fn_cpu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    query_start_loc: torch.Tensor,
    cache_indices: torch.Tensor,
    has_initial_state: torch.Tensor,
    conv_states: torch.Tensor,
    activation: str | None = "silu",
    **_: Any,
) -> torch.Tensor:
    """Each channel's causal convolution over the tokens of each prompt; the slots get the last inputs.

    Args:
        x: [channels, tokens], the prompts one after another.
        weight: [channels, width], oldest input first.
        bias: [channels].
        query_start_loc: [prompts + 1], where each begins and the last ends.
        cache_indices: [prompts], slots.
        has_initial_state: [prompts], False: starts from zeros whatever lies in its slot.
        conv_states: [slots, channels, width - 1], written in place.
        activation: "silu" or None.

    Returns:
        [channels, tokens].
    """
    outputs, kept = [], weight.shape[1] - 1
    for index, (start, end) in enumerate(pairwise(query_start_loc.tolist())):
        slot = conv_states[cache_indices[index]]
        past = slot.to(x.dtype) if has_initial_state[index] else x.new_zeros(slot.shape)
        seen = torch.cat([past, x[:, start:end]], dim=1)
        slot.copy_(seen[:, seen.shape[1] - kept :])
        outputs.append(functional.conv1d(seen[None], weight[:, None], bias, groups=len(weight))[0])
    return _activate(torch.cat(outputs, dim=1), activation)


def causal_conv1d_update_cpu(
    x: torch.Tensor,
    conv_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = "silu",
    *,
    conv_state_indices: torch.Tensor,
    **drafts: Any,
) -> torch.Tensor:
    """The convolution's next token of every request, x [requests, channels]; other arguments as above.

    Drafts are [requests, channels, nodes], and `drafts` what `convolve_drafts` takes.
    """
    slots = conv_state_indices.long()
    if x.dim() == 3:
        return _activate(convolve_drafts(x, conv_states, weight, bias, slots, **drafts), activation)
    seen = torch.cat([conv_states[slots].to(x.dtype), x[:, :, None]], dim=2)
    conv_states[slots] = seen[:, :, 1:].to(conv_states.dtype)
    output = (seen * weight).sum(-1)
    return _activate(output if bias is None else output + bias, activation)


def fused_gdn_gating_cpu(
    decay: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of the decay and step of every token, both [1, tokens, heads]; `decay` is A_log [heads]."""
    gate = -decay.float().exp() * functional.softplus(a.float() + dt_bias.float())
    return gate[None], torch.sigmoid(b.float())[None]


def chunk_gated_delta_rule_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    initial_state: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None, torch.Tensor]:
    """Prompts through the recurrence; a slot's state is read, and replaced by the one after the prompt.

    Args:
        q: [1, tokens, key heads, key size], of any length; normed here.
        k: as q.
        v: [1, tokens, value heads, value size].
        g: [1, tokens, value heads], log of the decay; with a key size behind, one for each column.
        beta: [1, tokens, value heads], the step.
        initial_state: [slots, value heads, value size, key size], written in place.
        initial_state_indices: [prompts], slots.
        cu_seqlens: [prompts + 1], where each prompt begins and the last ends.

    Returns:
        The output, as v; None; and the states before each chunk of 64 tokens of each prompt, which SGLang
        keeps for its prefix cache: [1, chunks of all prompts, value heads, value size, key size].
    """
    output, kept = torch.empty_like(v), []
    for index, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        slot = initial_state[initial_state_indices[index]]
        for first in range(start, end, CHUNK_TOKENS):
            part = slice(first, min(first + CHUNK_TOKENS, end))
            kept.append(slot.clone())
            rows, state = _recur(q[0, part], k[0, part], v[0, part], g[0, part], beta[0, part], slot)
            output[0, part] = rows.to(v.dtype)
            slot.copy_(state)
    return output, None, torch.stack(kept)[None]


def fused_sigmoid_gating_delta_rule_update_cpu(
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
    disable_state_update: bool = False,
    **drafts: Any,
) -> torch.Tensor:
    """The gates and the recurrence's next token of every request; arguments and output as above.

    With `disable_state_update` tokens are drafts, request after request, and `drafts` what `_drafted` takes.
    """
    heads = v.shape[2]
    g, beta = fused_gdn_gating_cpu(A_log, a.reshape(-1, heads), b.reshape(-1, heads), dt_bias)
    if disable_state_update:
        rows = (q[0], k[0], v[0], g[0], beta[0])
        return _drafted(rows, initial_state_source, initial_state_indices, **drafts)[None]
    output, _, _ = chunk_gated_delta_rule_cpu(
        q,
        k,
        v,
        g,
        beta,
        initial_state=initial_state_source,
        initial_state_indices=initial_state_indices,
        cu_seqlens=cu_seqlens,
    )
    return output


def fused_rmsnorm_gated_cpu(
    x: torch.Tensor, weight: torch.Tensor, gate: torch.Tensor, eps: float
) -> torch.Tensor:
    """RMS norm of rows x [rows, size], scaled by weight [size] and by silu(gate) [rows, size]."""
    normed = functional.rms_norm(x.float(), x.shape[-1:], eps=eps)
    return (weight * normed * functional.silu(gate.float())).to(x.dtype)


def _drafted(
    rows: tuple[torch.Tensor, ...],
    states: torch.Tensor,
    slots: torch.Tensor,
    *,
    intermediate_states_buffer: torch.Tensor,
    intermediate_state_indices: torch.Tensor,
    retrieve_parent_token: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Drafts [requests * nodes, heads, size] from states of their requests or parents; see `along_drafts`."""
    num_nodes = len(rows[2]) // len(slots)
    output = torch.empty_like(rows[2])

    def advance(request: int, node: int, before: torch.Tensor) -> torch.Tensor:
        own = slice(request * num_nodes + node, request * num_nodes + node + 1)
        q, k, v, g, beta = (part[own] for part in rows)
        row, state = _recur(q, k, v, g, beta, before)
        output[own] = row.to(output.dtype)
        return state

    parents = parents_of(len(slots), num_nodes) if retrieve_parent_token is None else retrieve_parent_token
    kept, places = intermediate_states_buffer, intermediate_state_indices
    along_drafts(states, slots, kept, places, parents, advance)
    return output


def _recur(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One prompt's tokens [tokens, heads, size]; gives their outputs and the state after them."""
    wide = torch.promote_types(state.dtype, torch.float32)
    share = v.shape[1] // q.shape[1]
    q, k = (_unit(rows.to(wide)).repeat_interleave(share, dim=1) for rows in (q, k))
    q, v, state = q * q.shape[-1] ** -0.5, v.to(wide), state.to(wide)
    decay, beta, outputs = g.to(wide).exp().view(*g.shape[:2], 1, -1), beta.to(wide), []
    for token in range(len(v)):
        state = state * decay[token]
        missed = v[token] - (state @ k[token, :, :, None])[..., 0]
        state = state + (beta[token, :, None] * missed)[:, :, None] * k[token, :, None, :]
        outputs.append((state @ q[token, :, :, None])[..., 0])
    return torch.stack(outputs), state


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows * torch.rsqrt((rows * rows).sum(-1, keepdim=True) + NORM_EPS)


def _activate(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    return functional.silu(x) if activation in ("silu", "swish") else x
