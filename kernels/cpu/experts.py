"""The chosen experts of a layer on a CPU, in torch: rows sorted by expert once, then two grouped products.

With few rows that saves small operators for every expert; with many, copies: `index_select` takes a tenth of
the time of indexing, and a bag of weighted rows is summed without copying them into the order of the choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch.nn import functional

# Of rows between the two matrices at a time. Larger pieces of memory go back to the system in every layer,
# and fetching them anew takes longer than writing them.
MAX_BYTES = 1 << 22
ALIGNED_BYTES = 16  # strides that torch's grouped product takes


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a layer that are here.

    `up` [experts, 2 * inner, hidden], `down` [experts, hidden, inner], their biases [experts, 2 * inner] and
    [experts, hidden]. `gate` makes [rows, inner] of [rows, 2 * inner], and may overwrite it.
    """

    up: torch.Tensor
    down: torch.Tensor
    gate: Callable[[torch.Tensor], torch.Tensor]
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    weighs_input: bool = False  # a choice's weight multiplies what the expert reads, not what it says


@torch.no_grad()
def chosen_experts(
    x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, experts: Experts
) -> torch.Tensor:
    """Weighted sum of what each row's experts make of it.

    Args:
        x: [rows, hidden].
        weights: [rows, choices].
        chosen: int [rows, choices], places in `experts`; negative: one that is not here and adds nothing.
        experts: Of the layer.

    Returns:
        [rows, hidden], as `x`; summed in the widest of its type, that of `weights` and 32 bits.
    """
    here = chosen >= 0
    is_of_row, choices, weights = here.nonzero()[:, 0], chosen[here], weights[here]
    if not len(choices):
        return torch.zeros_like(x)
    order = choices.argsort(stable=True)
    ends = torch.bincount(choices, minlength=len(experts.up)).cumsum(0, dtype=torch.int32)
    rows = x.index_select(0, is_of_row.index_select(0, order))
    if experts.weighs_input:
        rows *= weights.index_select(0, order).to(x.dtype)[:, None]
        weights = torch.ones_like(weights)
    outputs = torch.empty(len(order), x.shape[1], dtype=_widest(x.dtype, weights.dtype))
    for first, last, start, end in _pieces(ends.tolist(), MAX_BYTES // experts.up[0, :, 0].nbytes):
        outputs[start:end] = _outputs(rows[start:end], experts, slice(first, last), ends[first:last] - start)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    bags = here.sum(1).cumsum(0) - here.sum(1)
    weights = weights.to(outputs.dtype)
    return functional.embedding_bag(places, outputs, bags, mode="sum", per_sample_weights=weights).to(x.dtype)


def gated_silu(x: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half times the second."""
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def gated_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU, its tanh form, of the first half times the second."""
    gate, up = x.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh").mul_(up)


def clamped_swiglu(x: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """GPT-OSS's: gate * sigmoid(alpha * gate) * (up + 1), both clamped, in alternating columns."""
    gate, up = x[:, ::2].clamp(max=limit), x[:, 1::2].clamp(-limit, limit)
    return torch.sigmoid(gate * alpha).mul_(gate).mul_(up.add_(1))


def clamped_halves(x: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """MiniMax-M3's: as `clamped_swiglu`, of the first half and the second."""
    gate, up = x.chunk(2, dim=-1)
    gate = gate.clamp(max=limit)
    return torch.sigmoid(gate * alpha).mul_(gate).mul_(up.clamp(-limit, limit).add_(1))


def gated_situ(x: torch.Tensor, beta: float, limit: float | None) -> torch.Tensor:
    """Kimi-K3's: sigmoid(gate) times the gate within +-beta and the second half within +-limit, by tanh."""
    gate, up = x.chunk(2, dim=-1)
    gate = torch.sigmoid(gate).mul_(beta).mul_(torch.tanh(gate / beta))
    return gate.mul_(up if limit is None else torch.tanh(up / limit).mul_(limit))


def _pieces(ends: list[int], most_rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Experts [first, last) and their rows [start, end): no more than so many, but for one with more."""
    first = start = 0
    for expert, end in enumerate(ends):
        is_last = expert + 1 == len(ends)
        if end > start and (is_last or ends[expert + 1] - start > most_rows):
            yield first, expert + 1, start, end
            first, start = expert + 1, end


def _outputs(rows: torch.Tensor, experts: Experts, some: slice, ends: torch.Tensor) -> torch.Tensor:
    """What `some` of the experts make of their rows, which end at `ends` int32 [experts]."""
    inner = _with_bias(_products(rows, experts.up[some], ends), experts.up_bias, some, ends)
    return _with_bias(_products(experts.gate(inner), experts.down[some], ends), experts.down_bias, some, ends)


def _products(rows: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Each expert's rows times its matrix [experts, outputs, inputs]."""
    strides = (matrices.stride(1), rows.stride(0), matrices.shape[1])
    is_aligned = not any(stride * rows.element_size() % ALIGNED_BYTES for stride in strides)
    if is_aligned and rows.dtype != torch.float64:
        return functional.grouped_mm(rows, matrices.transpose(1, 2), offs=ends)
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    parts = zip(rows.split(sizes), matrices, strict=True)
    return torch.cat([part @ matrix.t() for part, matrix in parts])


def _with_bias(
    rows: torch.Tensor, biases: torch.Tensor | None, some: slice, ends: torch.Tensor
) -> torch.Tensor:
    """Added in 32 bits at least: 16 bits would round the sum twice."""
    if biases is None:
        return rows
    sizes = ends.diff(prepend=ends.new_zeros(1))
    wide = _widest(rows.dtype)
    return (rows.to(wide) + biases[some].to(wide).repeat_interleave(sizes, dim=0)).to(rows.dtype)


def _widest(*dtypes: torch.dtype) -> torch.dtype:
    return reduce(torch.promote_types, dtypes, torch.float32)
