"""The experts of a CPU, against a definition that takes a row and a choice at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_layered_kernels.cpu import experts as module
from sglang_layered_kernels.cpu.experts import (
    Experts,
    chosen_experts,
    clamped_halves,
    clamped_swiglu,
    gated_gelu,
    gated_silu,
    gated_situ,
)
from torch.nn import functional

ALPHA, LIMIT = 1.7, 0.8
Gate = Callable[[torch.Tensor], torch.Tensor]


def halves(activation: Gate, x: torch.Tensor) -> torch.Tensor:
    half = len(x) // 2
    return activation(x[:half]) * x[half:]


def alternating(x: torch.Tensor) -> torch.Tensor:
    pairs = [(min(float(gate), LIMIT), max(min(float(up), LIMIT), -LIMIT)) for gate, up in x.view(-1, 2)]
    outputs = [gate / (1 + math.exp(-ALPHA * gate)) * (up + 1) for gate, up in pairs]
    return torch.tensor(outputs, dtype=x.dtype)


def situ(limit: float | None, x: torch.Tensor) -> torch.Tensor:
    outputs = []
    for gate, up in x.view(2, -1).T.tolist():
        bounded = up if limit is None else limit * math.tanh(up / limit)
        outputs.append(ALPHA * math.tanh(gate / ALPHA) / (1 + math.exp(-gate)) * bounded)
    return torch.tensor(outputs, dtype=x.dtype)


GATES: dict[str, tuple[Gate, Gate]] = {  # ours, of rows; and the definition, of one row
    "silu": (gated_silu, partial(halves, functional.silu)),
    "gelu": (gated_gelu, partial(halves, partial(functional.gelu, approximate="tanh"))),
    "clamped": (partial(clamped_swiglu, alpha=ALPHA, limit=LIMIT), alternating),
    "clamped halves": (
        partial(clamped_halves, alpha=ALPHA, limit=LIMIT),
        lambda x: alternating(x.unflatten(0, (2, -1)).T.flatten()),
    ),
    "situ": (partial(gated_situ, beta=ALPHA, limit=LIMIT), partial(situ, LIMIT)),
    "situ without a limit": (partial(gated_situ, beta=ALPHA, limit=None), partial(situ, None)),
}


def drawn(seed: int, sizes: tuple[int, int, int], gate: str, has_bias: bool, weighs: bool) -> Experts:
    """Experts [experts, inner, hidden] of these sizes, in float64."""
    num, inner, hidden = sizes
    draw = partial(
        torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=False
    )
    biases = (draw(num, 2 * inner), draw(num, hidden)) if has_bias else (None, None)
    return Experts(draw(num, 2 * inner, hidden), draw(num, hidden, inner), GATES[gate][0], *biases, weighs)


def one_by_one(
    x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, experts: Experts, gate: Gate
) -> torch.Tensor:
    output = torch.zeros_like(x)
    for row, (choices, shares) in enumerate(zip(chosen.tolist(), weights.tolist(), strict=True)):
        for expert, share in zip(choices, shares, strict=True):
            if expert < 0:
                continue
            inner = experts.up[expert] @ (x[row] * share if experts.weighs_input else x[row])
            inner = gate(inner if experts.up_bias is None else inner + experts.up_bias[expert])
            result = experts.down[expert] @ inner
            result = result if experts.down_bias is None else result + experts.down_bias[expert]
            output[row] += result if experts.weighs_input else result * share
    return output


def choices(seed: int, num_rows: int, num_experts: int, top_k: int, share_missing: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(num_rows, num_experts, generator=generator).topk(top_k).indices.int()
    return chosen.masked_fill(torch.rand(chosen.shape, generator=generator) < share_missing, -1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    num_rows=st.integers(1, 40),
    sizes=st.sampled_from([(6, 3, 5), (5, 8, 16), (1, 4, 8), (20, 8, 8)]),
    gate=st.sampled_from(sorted(GATES)),
    has_bias=st.booleans(),
    weighs=st.booleans(),
    share_missing=st.sampled_from([0, 0, 0.4, 1]),
    max_bytes=st.sampled_from([1, 300, 1 << 22]),
)
def test_a_row_gets_the_weighted_sum_of_its_experts(
    seed: int,
    num_rows: int,
    sizes: tuple[int, int, int],
    gate: str,
    has_bias: bool,
    weighs: bool,
    share_missing: float,
    max_bytes: int,
) -> None:
    experts = drawn(seed, sizes, gate, has_bias, weighs)
    chosen = choices(seed, num_rows, sizes[0], min(3, sizes[0]), share_missing)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, sizes[2], generator=generator, dtype=torch.float64)
    weights = torch.rand(chosen.shape, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_BYTES", max_bytes)
        got = chosen_experts(x, weights, chosen, experts)
    torch.testing.assert_close(
        got, one_by_one(x, weights, chosen, experts, GATES[gate][1]), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("sizes", [(5, 3, 6), (12, 16, 32)])  # torch's grouped product takes the second only
@pytest.mark.parametrize("gate", GATES)
def test_it_is_as_exact_as_its_type(
    gate: str, sizes: tuple[int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    exact = drawn(3, sizes, gate, has_bias=True, weighs=False)
    chosen = choices(3, 30, sizes[0], 3, 0.1)
    x = torch.randn(30, sizes[2], generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)
    weights = torch.rand(chosen.shape, generator=torch.Generator().manual_seed(5))
    tensors = (exact.up, exact.down, exact.up_bias, exact.down_bias)
    up, down, *biases = (None if tensor is None else tensor.to(dtype) for tensor in tensors)
    assert up is not None and down is not None
    rounded = Experts(up, down, exact.gate, *biases)
    got = chosen_experts(x, weights, chosen, rounded)
    widened = Experts(
        up.double(), down.double(), exact.gate, *(b if b is None else b.double() for b in biases)
    )
    expected = one_by_one(x.double(), weights.double(), chosen, widened, GATES[gate][1])
    assert got.dtype == dtype
    assert float((got - expected).abs().max() / expected.abs().max()) < tolerance


def test_ranks_with_a_part_of_the_experts_add_up_to_all() -> None:
    experts, chosen = drawn(7, (6, 8, 16), "silu", has_bias=False, weighs=False), choices(7, 9, 6, 3, 0)
    generator = torch.Generator().manual_seed(8)
    x, weights = (torch.randn(9, size, generator=generator, dtype=torch.float64) for size in (16, 3))
    parts = [
        chosen_experts(
            x,
            weights,
            torch.where((chosen >= first) & (chosen < first + 3), chosen - first, -1),
            Experts(experts.up[first : first + 3], experts.down[first : first + 3], gated_silu),
        )
        for first in (0, 3)
    ]
    torch.testing.assert_close(sum(parts), chosen_experts(x, weights, chosen, experts))
