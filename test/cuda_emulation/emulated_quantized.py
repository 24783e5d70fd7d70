"""torch in the place of the kernels that SGLang's layers of quantized weights call on CUDA.

SGLang's own are the layout of the weights, which scales rows share, and the order of calls. All computes in
float64, the layers that are not quantized as well: what reaches a row's rounding to few bits is then the same,
whatever rows are beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from flashinfer_emulation import attend
from sglang_layered_kernels.cpu.scaled_products import (
    experts_product,
    quantize_by_row,
    quantize_by_tensor,
    scaled_product,
    sort_by_expert,
)
from torch.nn import functional

import emulated_flash_attention
import emulated_kernels

LINEAR = functional.linear


def emulate_quantized(fused_experts: Callable[..., Any]) -> None:
    """Put them where SGLang calls the kernels; `fused_experts` is SGLang's own."""
    import sglang.kernels.ops.moe.fused_moe_triton_kernels as moe_kernels
    import sglang.kernels.ops.quantization.fp8_kernel as fp8_kernel
    import sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe as fused_moe

    emulated_kernels._register(
        "sgl_kernel",
        {
            "sgl_per_token_quant_fp8": quantize_by_row,
            "fp8_scaled_mm": product,
            "moe_align_block_size": align,
            "moe_sum_reduce": add_choices,
        },
    )
    emulated_kernels._register("sglang", {"per_tensor_quant_fp8": quantize_by_tensor})
    fp8_kernel._static_quant_fp8 = Launched(quantize_by_given_scale)
    moe_kernels.fused_moe_kernel = Launched(multiply_experts)
    fused_moe.fused_experts = fused_experts
    fused_moe.inplace_fused_experts = in_place(fused_moe.fused_experts_impl)
    functional.linear = linear64
    emulated_flash_attention.attend_wide = attend64


class Launched:
    """Stands for a Triton kernel: `kernel[grid](...)`."""

    def __init__(self, reference: Callable[..., None]) -> None:
        self._reference = reference

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._reference


def linear64(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    wide = None if bias is None else bias.double()
    return LINEAR(x.double(), weight.double(), wide).to(x.dtype)


def attend64(q: Any, k: Any, v: Any, sm_scale: float, causal: bool) -> torch.Tensor:
    """Attention in float64; values are as wide as keys."""
    attended = attend(q.double(), k.double(), v.double(), causal=causal, sm_scale=sm_scale, window_left=-1)
    return attended.to(q.dtype)


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


def quantize_by_given_scale(rows: Any, out: Any, scale: Any, repeated: Any, *others: Any, **more: Any) -> None:
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
    *strides: Any,
    MUL_ROUTED_WEIGHT: bool,
    top_k: int,
    use_fp8_w8a8: bool,
    BLOCK_SIZE_M: int,
    **others: Any,
) -> None:
    assert use_fp8_w8a8 and rows_descriptor is weight_descriptor is bias is None
    experts_product(
        rows,
        weight,
        out,
        row_scales,
        scales,
        shares if MUL_ROUTED_WEIGHT else None,
        (sorted_ids, expert_ids, int(num_padded)),
        BLOCK_SIZE_M,
        top_k,
    )


def in_place(experts: Callable[..., torch.Tensor]) -> Callable[..., None]:
    """SGLang's operator, whose seventh argument its function does not have."""

    def run(
        rows: Any, w1: Any, w2: Any, shares: Any, ids: Any, b1: Any, b2: Any, *others: Any, **more: Any
    ) -> None:
        experts(rows, w1, w2, shares, ids, b1, b2, True, *others, **more)

    return run
