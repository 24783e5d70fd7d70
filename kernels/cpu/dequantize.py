"""Quantized weights as the floats they stand for: the layouts of published checkpoints, which SGLang keeps.

Every function gives [..., outputs, inputs] in the dtype asked for; leading dimensions, as experts, are kept.
"""

from __future__ import annotations

import torch

from sglang_layered.errors import CpuKernelError

NIBBLES = range(8)  # 4-bit numbers of an int32, the lowest bits first
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # which nibble holds each of eight outputs in a row
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
MXFP4_GROUP = 32  # inputs that share a scale
E8M0_BIAS = 127


def dequantize_fp8(
    weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """FP8 with a scale a block.

    Args:
        weight: [..., outputs, inputs] float8.
        scales: [..., ceil(outputs / block[0]), ceil(inputs / block[1])].
        block: outputs and inputs that share a scale.
        dtype: of the result.
    """
    outputs, inputs = weight.shape[-2:]
    wide = scales.to(dtype).repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return weight.to(dtype) * wide[..., :outputs, :inputs]


def dequantize_int8(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Int8 [..., outputs, inputs] with a scale an output, in any shape of that many numbers."""
    return weight.to(dtype) * scales.to(dtype).reshape(*weight.shape[:-1], 1)


def dequantize_int4(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, inputs: int, dtype: torch.dtype
) -> torch.Tensor:
    """AWQ or GPTQ, told apart by the rows of `qweight`.

    Args:
        qweight: int32; AWQ [..., inputs, outputs / 8], GPTQ [..., inputs / 8, outputs] without an order of
            the inputs (`desc_act`).
        qzeros: [..., inputs / group, outputs / 8] int32; GPTQ stores them less one.
        scales: [..., inputs / group, outputs].
        inputs: of the layer.
        dtype: of the result.

    Raises:
        CpuKernelError: `qweight` has the rows of neither.
    """
    rows = qweight.shape[-2]
    if rows == inputs:
        weight, zeros = _unpack(qweight, AWQ_NIBBLES), _unpack(qzeros, AWQ_NIBBLES)
    elif rows * len(NIBBLES) == inputs:
        weight = _unpack(qweight.transpose(-1, -2), NIBBLES).transpose(-1, -2)
        zeros = _unpack(qzeros, NIBBLES) + 1
    else:
        raise CpuKernelError(f"4-bit weights of {rows} rows are of no layer with {inputs} inputs")
    group = inputs // zeros.shape[-2]
    whole = (weight - zeros.repeat_interleave(group, -2)).to(dtype)
    return (whole * scales.to(dtype).repeat_interleave(group, -2)).transpose(-1, -2)


def dequantize_mxfp4(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """MXFP4: [..., outputs, inputs / 2] bytes of two FP4 numbers, the lower first; a power of two for 32.

    Args:
        weight: uint8, as above.
        scales: [..., outputs, inputs / 32] uint8, exponents with a bias of 127.
        dtype: of the result.
    """
    values = torch.tensor(FP4_VALUES, dtype=dtype)
    pairs = torch.stack([values[(weight & 15).long()], values[(weight >> 4).long()]], -1)
    exponents = scales.to(dtype) - E8M0_BIAS
    return pairs.flatten(-2) * torch.exp2(exponents).repeat_interleave(MXFP4_GROUP, -1)


def _unpack(packed: torch.Tensor, nibbles: range | tuple[int, ...]) -> torch.Tensor:
    """[..., n] int32 as [..., 8 n] numbers of 0 to 15."""
    shifts = torch.tensor([4 * nibble for nibble in nibbles])
    return ((packed.unsqueeze(-1) >> shifts) & 15).flatten(-2)
