"""torch for the kernels of 4-bit weights: Marlin, CUTLASS (W4A8 experts), FlashInfer (NVFP4)."""

from __future__ import annotations

from typing import Any

import torch
from sglang_layered_kernels.cpu import nvfp4, w4a8
from sglang_layered_kernels.cpu.marlin import marlin_weight, repack
from sglang_layered_kernels.cpu.scaled_products import experts_product, sort_by_expert


def emulate_marlin() -> None:
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


def emulate_w4a8() -> None:
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


def emulate_nvfp4() -> None:
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
