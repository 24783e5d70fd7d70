"""torch in the place of the kernels that SGLang's layers of quantized weights call on CUDA.

SGLang's own are the layout of the weights, which scales rows share, and the order of calls. All computes in
float64, plain layers too: what reaches a row's rounding to few bits is then the same, whatever is beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from flashinfer_emulation import attend
from sglang_layered_kernels.cpu.dequantize import dequantize_fp8
from sglang_layered_kernels.cpu.scaled_products import (
    experts_product,
    quantize_by_group,
    quantize_by_row,
    quantize_by_tensor,
    scaled,
    scaled_product,
    sort_by_expert,
)
from torch.nn import functional

import emulated_flash_attention
import emulated_kernels
import emulated_triton_attention
from emulated_four_bits import emulate_marlin, emulate_nvfp4, emulate_w4a8

LINEAR = functional.linear


def emulate_quantized(fused_experts: Callable[..., Any]) -> None:
    """Put them where SGLang calls the kernels; `fused_experts` is SGLang's own."""
    import sglang.kernels.ops.moe.fused_moe_triton_kernels as moe_kernels
    import sglang.kernels.ops.quantization.fp8_kernel as fp8_kernel
    import sglang.srt.layers.moe.fused_moe_triton.fused_marlin_moe
    import sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe as fused_moe
    import sglang.srt.layers.quantization.fp8_utils as fp8_utils
    import sglang.srt.layers.quantization.marlin_utils_fp4  # noqa: F401  (with experts' it defines operators)

    emulated_kernels.register(
        "sgl_kernel",
        {
            "sgl_per_token_quant_fp8": quantize_by_row,
            "fp8_scaled_mm": product,
            "moe_align_block_size": align,
            "moe_sum_reduce": add_choices,
        },
    )
    emulated_kernels.register("sglang", {"per_tensor_quant_fp8": quantize_by_one_scale})
    _take_cuda_functions("inplace_fused_experts", "fused_marlin_moe", "apply_fp4_marlin_linear")
    fp8_kernel.per_token_group_quant = quantize_by_group_of
    fp8_utils.w8a8_block_fp8_matmul_triton = multiply_by_blocks
    fp8_kernel._static_quant_fp8 = Launched(quantize_by_given_scale)
    moe_kernels.fused_moe_kernel = Launched(multiply_experts)
    emulate_marlin()
    emulate_w4a8()
    emulate_nvfp4()
    fused_moe.fused_experts = fused_experts
    functional.linear = linear64
    for module in (emulated_flash_attention, emulated_triton_attention):
        module.attend = attend64


def _take_cuda_functions(*names: str) -> None:
    """Let SGLang's own operators run the functions that they have on CUDA."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for name in names:
        operator = getattr(torch.ops.sglang, name).default
        emulated_kernels.register("sglang", {name: partial(operator.redispatch, cuda)})


class Launched:
    """Stands for a Triton kernel: `kernel[grid](...)`."""

    def __init__(self, reference: Callable[..., None]) -> None:
        self._reference = reference

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._reference


def linear64(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    wide = None if bias is None else bias.double()
    return LINEAR(x.double(), weight.double(), wide).to(x.dtype)


def attend64(q: Any, k: Any, v: Any, **how: Any) -> torch.Tensor:
    return attend(q.double(), k.double(), v.double(), **how)


def product(
    rows: Any, weight: Any, row_scales: Any, scales: Any, dtype: torch.dtype, bias: Any
) -> torch.Tensor:
    return scaled_product(rows, weight, row_scales, scales, dtype, bias)


def align(
    topk_ids: Any,
    num_ids: int,
    block_rows: int,
    sorted_ids: Any,
    expert_ids: Any,
    num_padded: Any,
    *others: Any,
) -> None:
    """`num_ids`: one more than there are experts, for those of other ranks."""
    sort_by_expert(topk_ids, num_ids - 1, block_rows, sorted_ids, expert_ids, num_padded)


def add_choices(products: Any, out: Any, factor: float) -> None:
    out.copy_((products.double().sum(1) * factor).to(out.dtype))


def quantize_by_one_scale(rows: Any, out: Any, scale: Any, is_static: bool = False) -> None:
    quantize_by_tensor(rows, out, scale, is_static)


def quantize_by_group_of(
    rows: Any, out: Any, scales: Any, group_size: int, scale_ue8m0: bool, *others: Any, **more: Any
) -> None:
    assert not scale_ue8m0
    quantize_by_group(rows, out, scales, group_size)


def multiply_by_blocks(
    rows: Any, weight: Any, row_scales: Any, scales: Any, block: list[int], output_dtype: torch.dtype
) -> torch.Tensor:
    wide = dequantize_fp8(rows, row_scales, (1, block[1]), torch.float64)
    return (wide @ dequantize_fp8(weight, scales, (block[0], block[1]), torch.float64).t()).to(output_dtype)


def quantize_by_given_scale(
    rows: Any, out: Any, scale: Any, repeated: Any, *others: Any, **more: Any
) -> None:
    """`repeated` gets the scale once a row, where it is wanted."""
    quantize_by_tensor(rows, out.view(torch.float8_e4m3fn), scale, True)
    if repeated is not None:
        repeated.fill_(scale.item())


def multiply_experts(
    rows: Any,
    rows_descriptor: None,
    weight: Any,
    weight_descriptor: None,
    bias: None,
    out: Any,
    row_scales: Any,
    scales: Any,
    shares: Any,
    sorted_ids: Any,
    expert_ids: Any,
    num_padded: Any,
    *sizes: Any,
    MUL_ROUTED_WEIGHT: bool,
    top_k: int,
    use_fp8_w8a8: bool,
    BLOCK_SIZE_M: int,
    **others: Any,
) -> None:
    assert use_fp8_w8a8 and rows_descriptor is weight_descriptor is bias is None
    block = (int(sizes[-2]), int(sizes[-1]))  # inputs and outputs that share a scale; 0: no blocks

    def widened(numbers: Any, scales: Any, num_rows: int) -> torch.Tensor:
        if not block[1]:
            return scaled(numbers, scales)
        return dequantize_fp8(numbers, scales, (num_rows, block[1]), torch.float64)

    experts_product(
        widened(rows, row_scales, 1),
        lambda expert: widened(weight[expert], scales[expert], block[0]),
        out,
        shares if MUL_ROUTED_WEIGHT else None,
        (sorted_ids, expert_ids, int(num_padded)),
        BLOCK_SIZE_M,
        top_k,
    )
