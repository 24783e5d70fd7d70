"""CPU references of FlashInfer's kernels for NVFP4: FP4 numbers, FP8 scales for 16 of them, a scale of all.

Rows are quantized by a given scale of all, so that a row's numbers do not depend on the rows beside it.
"""

from __future__ import annotations

import torch
from sglang_layered_kernels.cpu.dequantize import FP4_VALUES
from sglang_layered_kernels.cpu.scaled_products import FP8_LARGEST
from torch.nn import functional

GROUP, FP4_LARGEST = 16, 6.0
SWIZZLED_ROWS, SWIZZLED_COLUMNS = 128, 4  # scales of so many rows and groups stand in one block
FP8_SMALLEST = 2.0**-9


def quantize(rows: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, inputs] times `scale` as [n, inputs / 2] bytes, the first number low, and FP8 scales of 16."""
    groups = (rows.double() * scale.double()).unflatten(-1, (-1, GROUP))
    scales = (groups.abs().amax(-1) / FP4_LARGEST).clamp(FP8_SMALLEST, FP8_LARGEST).to(torch.float8_e4m3fn)
    values = torch.tensor(FP4_VALUES, dtype=torch.float64)
    nearest = ((groups / scales.double()[..., None])[..., None] - values).abs().argmin(-1).flatten(-2)
    return (nearest[..., 0::2] | (nearest[..., 1::2] << 4)).to(torch.uint8), scales


def widened(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[n, inputs] in float64, without the scale of all; `scales` [n, inputs / 16] FP8, or wider."""
    values = torch.tensor(FP4_VALUES, dtype=torch.float64)
    pairs = torch.stack([values[(packed & 15).long()], values[(packed >> 4).long()]], -1).flatten(-2)
    own = scales.view(torch.float8_e4m3fn).double()[: len(pairs), : pairs.shape[-1] // GROUP]
    return pairs * own.repeat_interleave(GROUP, -1)


def unswizzled(scales: torch.Tensor) -> torch.Tensor:
    """Scales [rows, groups] of whole blocks in their own order, from SGLang's order for the kernels."""
    rows, columns = scales.shape
    blocks = scales.reshape(rows // SWIZZLED_ROWS, columns // SWIZZLED_COLUMNS, 32, 4, SWIZZLED_COLUMNS)
    return blocks.permute(0, 3, 2, 1, 4).reshape(rows, columns)


def fused_experts(
    rows: torch.Tensor,
    topk_ids: torch.Tensor,
    shares: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
    scales: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """The routed experts of a layer.

    Args:
        rows: [n, hidden].
        topk_ids: [n, k].
        shares: [n, k].
        weights: [experts, 2 * intermediate, hidden / 2] bytes, up above gate, and those of down.
        scales: by which rows are multiplied before they are quantized (of all, or of each expert), of the
            weights in SGLang's order for the kernels, and of all for an expert's result; each for both.

    Returns:
        [n, hidden] float64.
    """
    row_scale, up_scales, up_alphas, inner_scale, down_scales, down_alphas = scales
    output = torch.zeros(rows.shape, dtype=torch.float64)
    for expert in topk_ids.unique().tolist():
        row, slot = torch.where(topk_ids == expert)
        both = _product(rows[row], _of(row_scale, expert), weights[0][expert], up_scales[expert])
        up, gate = (both * up_alphas[expert].double()).chunk(2, -1)
        inner = functional.silu(gate) * up
        down = _product(inner, _of(inner_scale, expert), weights[1][expert], down_scales[expert])
        shared = down * down_alphas[expert].double() * shares[row, slot].double()[:, None]
        output.index_add_(0, row, shared)
    return output


def _product(
    rows: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
) -> torch.Tensor:
    return widened(*quantize(rows, scale)) @ widened(weight, unswizzled(weight_scales)).t()


def _of(scale: torch.Tensor, expert: int) -> torch.Tensor:
    return scale if scale.numel() == 1 else scale[expert]
