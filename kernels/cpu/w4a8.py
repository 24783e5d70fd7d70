"""CPU references of the kernels around CUTLASS's product of 4-bit weights and FP8 rows, for W4A8 experts.

Choices of experts are ordered by expert, each expert's rows are multiplied, and the results are added up.
"""

from __future__ import annotations

import torch
from sglang_layered_kernels.cpu.scaled_products import as_fp8, scaled
from torch.nn import functional

GROUP = 128  # inputs that share a scale
SIGN, NIBBLE = 8, 16


def places_by_expert(topk_ids: torch.Tensor) -> torch.Tensor:
    """Where each choice of [rows, k] stands when they are ordered by expert; int32 [rows * k]."""
    order = topk_ids.flatten().sort(stable=True).indices
    places = torch.empty(order.shape, dtype=torch.int32)
    places[order] = torch.arange(len(order), dtype=torch.int32)
    return places


def quantize_in_order(
    rows: torch.Tensor, out: torch.Tensor, places: torch.Tensor, topk_ids: torch.Tensor, scale: torch.Tensor
) -> None:
    """Write each choice's row as FP8 to its place in `out` [rows * k, inputs]."""
    out[places.long()] = as_fp8(rows, scale).repeat_interleave(topk_ids.shape[1], 0)


def first_rows(topk_ids: torch.Tensor, num_experts: int, offsets: torch.Tensor, sizes: torch.Tensor) -> None:
    """Write where each expert's rows begin, and the end of all, to `offsets`, their number to sizes[:, 1]."""
    counts = torch.bincount(topk_ids.flatten().long(), minlength=num_experts)[:num_experts]
    offsets[0] = 0
    offsets[1:] = counts.cumsum(0)
    sizes[:, 1] = counts


def multiply_by_expert(
    out: torch.Tensor,
    rows: torch.Tensor,
    weight: torch.Tensor,
    row_scale: torch.Tensor,
    weight_scales: torch.Tensor,
    offsets: torch.Tensor,
    sizes: torch.Tensor,
) -> None:
    """Rows in the order of experts times the weights of each.

    Args:
        out: [choices, outputs].
        rows: [choices, inputs] FP8.
        weight: [experts, outputs, inputs / 2] bytes of two numbers of -8 to 7, the lower first.
        row_scale: of all rows.
        weight_scales: as SGLang interleaves those of [experts, outputs, inputs / 128].
        offsets: where each expert's rows begin.
        sizes: [experts, 3], of which the second is the number of rows.
    """
    wide = scaled(rows, row_scale)
    for expert in torch.where(sizes[:, 1] > 0)[0].tolist():
        mine = slice(int(offsets[expert]), int(offsets[expert]) + int(sizes[expert, 1]))
        out[mine] = (wide[mine] @ int4_weight(weight[expert], weight_scales[expert]).t()).to(out.dtype)


def int4_weight(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[outputs, inputs] in float64 of one expert."""
    packed = weight.view(torch.uint8).long()
    numbers = torch.stack([packed % NIBBLE, packed // NIBBLE], -1).flatten(1)
    signed = numbers - NIBBLE * (numbers >= SIGN)
    beside = scales.shape[-1] // len(weight)  # scales of one output that stand beside each other
    in_order = scales.double().view(-1, len(weight), beside).transpose(0, 1).flatten(1)
    return signed.double() * in_order.repeat_interleave(GROUP, 1)


def activate_and_quantize(both: torch.Tensor, out: torch.Tensor, scale: torch.Tensor) -> None:
    """Write SiLU of the first half times the second as FP8 to `out`."""
    gate, up = both.double().chunk(2, -1)
    out.copy_(as_fp8(functional.silu(gate) * up, scale))


def add_choices(
    products: torch.Tensor, out: torch.Tensor, places: torch.Tensor, shares: torch.Tensor, factor: float
) -> None:
    """Write the sum of each row's choices, by their shares [rows, k], to `out` [rows, outputs]."""
    chosen = products[places.long()].double().unflatten(0, shares.shape)
    out.copy_(((chosen * shares.double()[..., None]).sum(1) * factor).to(out.dtype))
