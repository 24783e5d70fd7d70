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
from sglang_layered_kernels.cpu import nvfp4, w4a8
from sglang_layered_kernels.cpu.dequantize import dequantize_fp8
from sglang_layered_kernels.cpu.marlin import marlin_weight, repack
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

LINEAR = functional.linear


def emulate_quantized(fused_experts: Callable[..., Any]) -> None:
    """Put them where SGLang calls the kernels; `fused_experts` is SGLang's own."""
    import sglang.kernels.ops.moe.fused_moe_triton_kernels as moe_kernels
    import sglang.kernels.ops.quantization.fp8_kernel as fp8_kernel
    import sglang.srt.layers.moe.fused_moe_triton.fused_marlin_moe
    import sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe as fused_moe
    import sglang.srt.layers.quantization.fp8_utils as fp8_utils
    import sglang.srt.layers.quantization.marlin_utils_fp4  # noqa: F401  (with experts' it defines operators)

    emulated_kernels._register(
        "sgl_kernel",
        {
            "sgl_per_token_quant_fp8": quantize_by_row,
            "fp8_scaled_mm": product,
            "moe_align_block_size": align,
            "moe_sum_reduce": add_choices,
        },
    )
    emulated_kernels._register("sglang", {"per_tensor_quant_fp8": quantize_by_one_scale})
    _take_cuda_functions("inplace_fused_experts", "fused_marlin_moe", "apply_fp4_marlin_linear")
    fp8_kernel.per_token_group_quant = quantize_by_group_of
    fp8_utils.w8a8_block_fp8_matmul_triton = multiply_by_blocks
    fp8_kernel._static_quant_fp8 = Launched(quantize_by_given_scale)
    moe_kernels.fused_moe_kernel = Launched(multiply_experts)
    _emulate_marlin()
    _emulate_w4a8()
    _emulate_nvfp4()
    fused_moe.fused_experts = fused_experts
    functional.linear = linear64
    for module in (emulated_flash_attention, emulated_triton_attention):
        module.attend = attend64


def _take_cuda_functions(*names: str) -> None:
    """Let SGLang's own operators run the functions that they have on CUDA."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for name in names:
        operator = getattr(torch.ops.sglang, name).default
        emulated_kernels._register("sglang", {name: partial(operator.redispatch, cuda)})


def _emulate_marlin() -> None:
    import sglang.kernels.ops.moe.moe_align_single_token as single
    import sglang.srt.hardware_backend.gpu.quantization.gptq_kernels as gptq_kernels
    import sglang.srt.layers.moe.fused_moe_triton.fused_marlin_moe as marlin_moe
    import sglang.srt.layers.quantization.compressed_tensors.schemes.compressed_tensors_wNa16 as w4a16
    import sglang.srt.layers.quantization.marlin_utils as marlin_utils
    import sglang.srt.layers.quantization.marlin_utils_fp4 as marlin_fp4

    for module in (gptq_kernels, w4a16, marlin_fp4):
        module.gptq_marlin_repack = repack
    for module in (marlin_utils, marlin_fp4):
        module.gptq_marlin_gemm = multiply_marlin
    marlin_moe.moe_wna16_marlin_gemm = multiply_marlin_experts
    single.moe_align_single_token = align_one_row


def _emulate_w4a8() -> None:
    import sglang.srt.layers.moe.cutlass_w4a8_moe as w4a8_moe

    w4a8_moe.cutlass_w4_run_moe_ep_preproess = w4a8.places_by_expert
    w4a8_moe.pre_reorder_for_cutlass_moe = lambda rows, out, places, ids, scale, *others: (
        w4a8.quantize_in_order(rows, out, places, ids, scale)
    )
    w4a8_moe.get_cutlass_w4a8_moe_mm_data = count_rows
    w4a8_moe.cutlass_w4a8_moe_mm = lambda *given: w4a8.multiply_by_expert(*given[:7])
    w4a8_moe.silu_mul_static_tensorwise_quant_for_cutlass_moe = lambda both, out, scale, *others: (
        w4a8.activate_and_quantize(both, out, scale)
    )
    w4a8_moe.post_reorder_for_cutlass_moe = add_w4a8


def _emulate_nvfp4() -> None:
    import flashinfer.fused_moe
    import sglang.srt.layers.quantization.modelopt_quant as modelopt

    modelopt.fp4_quantize = nvfp4.quantize
    modelopt.fp4_gemm = multiply_nvfp4
    flashinfer.fused_moe.cutlass_fused_moe = run_nvfp4_experts


def multiply_nvfp4(
    rows: Any, weight: Any, row_scales: Any, scales: Any, alpha: Any, dtype: torch.dtype, size_n: int
) -> torch.Tensor:
    """Weights and their scales come transposed."""
    wide = nvfp4.widened(weight.t(), nvfp4.unswizzled(scales.t()))
    return (nvfp4.widened(rows, row_scales) @ wide.t() * alpha.double()).to(dtype)


def run_nvfp4_experts(
    *,
    output: Any,
    input: Any,
    token_selected_experts: Any,
    token_final_scales: Any,
    fc1_expert_weights: Any,
    fc2_expert_weights: Any,
    input_sf: None,
    quant_scales: Any,
    **others: Any,
) -> list[torch.Tensor]:
    assert input_sf is None
    weights = (fc1_expert_weights.view(torch.uint8), fc2_expert_weights.view(torch.uint8))
    scales = tuple(part.view(torch.uint8) if part.dtype == torch.int32 else part for part in quant_scales)
    result = nvfp4.fused_experts(input, token_selected_experts, token_final_scales, weights, scales)
    return [output.copy_(result.to(output.dtype))]


def count_rows(
    topk_ids: Any,
    offsets: Any,
    sizes1: Any,
    sizes2: Any,
    a_map: Any,
    c_map: Any,
    num_experts: int,
    *others: Any,
) -> None:
    for sizes in (sizes1, sizes2):
        w4a8.first_rows(topk_ids, num_experts, offsets, sizes)


def add_w4a8(
    products: Any,
    out: Any,
    places: Any,
    topk_ids: Any,
    shares: Any,
    num_experts: int,
    k: int,
    num_rows: int,
    hidden: int,
    factor: float,
) -> None:
    w4a8.add_choices(products, out, places, shares, factor)


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


def multiply_marlin(
    a: Any,
    c: None,
    b_q_weight: Any,
    b_scales: Any,
    global_scale: Any,
    *others: Any,
    size_n: int,
    **more: Any,
) -> torch.Tensor:
    weight = marlin_weight(b_q_weight, b_scales, global_scale, size_n)
    return (a.double() @ weight.t()).to(a.dtype)


def multiply_marlin_experts(
    rows: Any,
    out: Any,
    weight: Any,
    bias: None,
    scales: Any,
    scales_of_all: Any,
    zeros: None,
    g_idx: Any,
    sort_indices: Any,
    workspace: Any,
    sorted_ids: Any,
    expert_ids: Any,
    num_padded: Any,
    shares: Any,
    *,
    moe_block_size: int,
    top_k: int,
    mul_topk_weights: bool,
    size_n: int,
    **others: Any,
) -> torch.Tensor:
    assert bias is zeros is None
    experts_product(
        rows,
        lambda expert: marlin_weight(
            weight[expert], scales[expert], None if scales_of_all is None else scales_of_all[expert], size_n
        ),
        out,
        shares if mul_topk_weights else None,
        (sorted_ids, expert_ids, int(num_padded)),
        moe_block_size,
        top_k,
    )
    return out


def align_one_row(topk_ids: Any, block_rows: int) -> tuple[torch.Tensor, ...]:
    num_choices = topk_ids.shape[1]
    sorted_ids, expert_ids, num_padded = (
        torch.empty(size, dtype=torch.int32) for size in (num_choices * block_rows, num_choices, 1)
    )
    sort_by_expert(topk_ids, int(topk_ids.max()) + 1, block_rows, sorted_ids, expert_ids, num_padded)
    return sorted_ids, expert_ids, num_padded
