"""CPU references of Marlin: 4-bit weights times rows that are not quantized.

Weights stay as they are loaded, in the shape that Marlin's own layout has: only its kernels read that layout.
Scales are permuted by SGLang, in torch; the permutation is undone here.
"""

from __future__ import annotations

import torch
from sglang_layered_kernels.cpu.dequantize import FP4_VALUES, NIBBLES

from sglang_layered.errors import CpuKernelError

TILE, PER_INT32 = 16, 8
COLUMNS = 64  # whose scales are permuted together
NVFP4_EXPONENT = 7  # SGLang's scales of NVFP4 are larger by this power of two, the one of all in float16 too


def repack(
    b_q_weight: torch.Tensor, perm: torch.Tensor, size_k: int, size_n: int, num_bits: int
) -> torch.Tensor:
    """[inputs / 8, outputs] int32 in the shape of Marlin's tiles, with its numbers where they were.

    Raises:
        CpuKernelError: another order of the inputs, or other than 4 bits.
    """
    if perm.numel() or num_bits != 4:
        raise CpuKernelError(
            f"repack: {num_bits} bits in an order of {perm.numel()} inputs; only plain 4 bits"
        )
    return b_q_weight.reshape(size_k // TILE, size_n * TILE // PER_INT32)


def marlin_weight(
    weight: torch.Tensor, scales: torch.Tensor, scale_of_all: torch.Tensor | None, size_n: int
) -> torch.Tensor:
    """[outputs, inputs] in float64.

    Args:
        weight: as `repack` gives it: numbers of 0 to 15 that stand for -8 to 7, or with `scale_of_all` FP4.
        scales: [inputs / group, outputs], permuted; of FP4 the bytes that SGLang makes of them.
        scale_of_all: of NVFP4, float16, or None.
        size_n: outputs.

    Raises:
        CpuKernelError: a scale of all that is not float16, the exponent of which is another.
    """
    packed = weight.reshape(-1, size_n)
    shifts = 4 * torch.tensor(NIBBLES)[:, None]
    numbers = ((packed.unsqueeze(1) >> shifts) & 15).flatten(0, 1)
    if scale_of_all is None:
        values, wide = (numbers - 8).double(), unpermuted(scales.double())
    else:
        if scale_of_all.dtype != torch.float16:
            raise CpuKernelError(f"marlin_weight: a scale of all in {scale_of_all.dtype}; only in float16")
        values = torch.tensor(FP4_VALUES, dtype=torch.float64)[numbers]
        wide = unpermuted(_nvfp4_scales(scales)) * scale_of_all.double() / 2.0**NVFP4_EXPONENT
    return (values * wide.repeat_interleave(len(values) // len(wide), 0)).t()


def unpermuted(scales: torch.Tensor) -> torch.Tensor:
    """Scales [groups, outputs] in the order of the outputs; only for more than one group."""
    at = torch.arange(COLUMNS).view(8, 8).t().flatten()
    blocks = scales.reshape(-1, COLUMNS)
    ordered = torch.empty_like(blocks)
    ordered[:, at] = blocks
    return ordered.reshape(scales.shape)


def _nvfp4_scales(scales: torch.Tensor) -> torch.Tensor:
    """Each byte is the upper half of a float16 without its sign; neighbours of four have changed places."""
    bits = scales.view(torch.uint8).to(torch.int32) << 7
    halves = bits.to(torch.int16).view(torch.float16).double() / 2.0**NVFP4_EXPONENT
    return halves.view(-1, 4)[:, [0, 2, 1, 3]].view(scales.shape)
