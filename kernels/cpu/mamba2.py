"""CPU references of Mamba2's state-space layers: the scan over prompts, and the next token of every request.

A request's state at its slot is a matrix S [size, state size] a head. With a step d, made positive by a
softplus, a token x [size] with its vectors b and c [state size] changes the matrix and reads it:

    S = exp(A d) S + d x b^T;  out = S c + D x

Arithmetic is in float32, or in float64 where the state is, token by token. Signatures are those with which
SGLang calls its Triton kernels (srt/layers/attention/mamba/mamba.py). The convolution before them is in
`gated_delta.py`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from sglang_layered_kernels.cpu.draft_states import along_drafts
from torch.nn import functional

from sglang_layered.errors import CpuKernelError


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor,
    *,
    dt_bias: torch.Tensor,
    cu_seqlens: torch.Tensor,
    out: torch.Tensor,
    initial_states: torch.Tensor | None = None,
    state_dtype: torch.dtype = torch.float32,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts, one after another, through the recurrence.

    Args:
        x: [1, tokens, heads, size].
        dt: [1, tokens, heads], the step before its bias and softplus.
        A: [heads], negative.
        B: [1, tokens, groups, state size]; a group's heads share it.
        C: as B.
        chunk_size: tokens.
        D: [heads].
        dt_bias: [heads].
        cu_seqlens: [prompts + 1], where each prompt begins and the last ends.
        out: as x, written in place.
        initial_states: [prompts, heads, size, state size]; None: all start from zeros.
        state_dtype: of the states that are returned.

    Returns:
        The states before every `chunk_size`-th token, counted over all prompts, [1, chunks, heads, size,
        state size]; and those after each prompt, as `initial_states`.
    """
    kept: list[torch.Tensor] = []
    last: list[torch.Tensor] = []
    for index, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        own = slice(start, end)
        first = x.new_zeros(*x.shape[2:], B.shape[3]) if initial_states is None else initial_states[index]
        rows, states = _recur(x[0, own], _step(dt[0, own], dt_bias), A, B[0, own], C[0, own], D, first)
        out[0, own] = rows.to(out.dtype)
        kept += [states[token - start] for token in range(start, end) if token % chunk_size == 0]
        last.append(states[-1])
    return torch.stack(kept)[None].to(state_dtype), torch.stack(last).to(state_dtype)


def selective_state_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    *,
    dt_bias: torch.Tensor,
    state_batch_indices: torch.Tensor,
    out: torch.Tensor,
    disable_state_update: bool = False,
    intermediate_states_buffer: torch.Tensor | None = None,
    intermediate_state_indices: torch.Tensor | None = None,
    retrieve_parent_token: torch.Tensor | None = None,
    **_: Any,
) -> None:
    """The recurrence's next token of every request, or its drafts.

    Args:
        state: [slots, heads, size, state size], written in place.
        x: [requests, heads, size]; `dt` and `out` too.
        dt: one number a head, over and over, as in all arguments that are longer here than above.
        A: [heads, size, state size].
        B: [requests, groups, state size].
        C: as B.
        D: [heads, size].
        dt_bias: [heads, size].
        state_batch_indices: [requests], slots.
        out: written in place.
        disable_state_update: there are drafts: x and what is like it, B and C have their number behind the
            requests, and states stay as they are.
        intermediate_states_buffer: [places, drafts, heads, size, state size], as `kept` of `along_drafts`.
        intermediate_state_indices: [requests or more], places.
        retrieve_parent_token: [requests, drafts], parents; None: chains.
    """
    step = _step(dt[..., 0], dt_bias[:, 0])
    if disable_state_update:

        def advance(request: int, node: int, before: torch.Tensor) -> torch.Tensor:
            own = (slice(request, request + 1), node)
            rows, states = _recur(x[own], step[own], A[:, 0, 0], B[own], C[own], D[:, 0], before)
            out[own] = rows.to(out.dtype)
            return states[-1]

        if intermediate_states_buffer is None or intermediate_state_indices is None:
            raise CpuKernelError("selective_state_update: drafts whose states are not kept have no reference")
        kept, places = intermediate_states_buffer, intermediate_state_indices
        along_drafts(state, state_batch_indices, kept, places, retrieve_parent_token, advance)
        return
    for row, slot in enumerate(state_batch_indices.tolist()):
        own = slice(row, row + 1)
        rows, states = _recur(x[own], step[own], A[:, 0, 0], B[own], C[own], D[:, 0], state[slot])
        out[own] = rows.to(out.dtype)
        state[slot] = states[-1].to(state.dtype)


def _step(dt: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(dt.dtype, torch.float32)
    return functional.softplus(dt.to(wide) + bias.to(wide))


def _recur(
    x: torch.Tensor,
    step: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One prompt's tokens [tokens, heads, size]; gives outputs, and the states before and after each."""
    wide = torch.promote_types(state.dtype, torch.float32)
    share = x.shape[1] // B.shape[1]
    b, c = (rows.to(wide).repeat_interleave(share, dim=1)[:, :, None] for rows in (B, C))
    x, step = x.to(wide), step.to(wide)
    decay, added = (step * A.to(wide)).exp()[..., None, None], (step[..., None] * x)[..., None] * b
    states = [state.to(wide)]
    for token in range(len(x)):
        states.append(states[-1] * decay[token] + added[token])
    seen = torch.stack(states)
    return (seen[1:] * c).sum(-1) + D.to(wide)[:, None] * x, seen
