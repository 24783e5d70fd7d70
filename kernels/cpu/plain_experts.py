"""CPU references of what Nemotron-H's experts need: those that SGLang runs on a CPU have gates, no factor."""

from __future__ import annotations

import torch
from torch.nn import functional


def plain_experts(
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    chosen: torch.Tensor,
    factor: float = 1.0,
) -> torch.Tensor:
    """Experts that square a ReLU and have no gate.

    Args:
        x: [rows, hidden].
        up: [experts, expert size, hidden].
        down: [experts, hidden, expert size].
        weights: [rows, chosen], of each choice.
        chosen: [rows, chosen], experts.
        factor: of all weights.

    Returns:
        [rows, hidden]. Each row is summed in the order of its choices, whatever the other rows are.
    """
    parts = x.new_empty(*chosen.shape, x.shape[1])
    for expert in chosen.unique().tolist():
        rows, places = (chosen == expert).nonzero(as_tuple=True)
        hidden = functional.relu(functional.linear(x[rows], up[expert])).square()
        parts[rows, places] = functional.linear(hidden, down[expert])
    return (parts * weights[..., None].to(x.dtype)).sum(1) * factor


def wide_product(rows: torch.Tensor, matrix: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    """`torch.mm` with `out_dtype`, which PyTorch has for CUDA only; a router asks for float32."""
    return rows.to(out_dtype) @ matrix.to(out_dtype)
