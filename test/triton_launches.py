"""Triton kernels that a layered step and its planning launch, with the number of variants compiled of each.

test/kernels compiles them without a device; test/cuda_emulation checks that steps launch no others.
"""

from __future__ import annotations

from importlib.metadata import version

OPS = "sglang.kernels.ops"
OURS = "sglang_layered_kernels.expert_traffic.triton_kernel"

_VARIANTS = {
    f"{OURS}:count_small": 3,
    f"{OURS}:gather_blocks": 3,
    f"{OURS}:fold_scratch": 3,
    f"{OPS}.moe.fused_moe_triton_kernels:fused_moe_kernel": 4,
    f"{OPS}.attention.decode_attention:_fwd_grouped_kernel_stage1": 1,
    f"{OPS}.attention.decode_attention:_fwd_kernel_stage1": 1,
    f"{OPS}.attention.decode_attention:_fwd_kernel_stage2": 2,
    f"{OPS}.attention.extend_attention:_fwd_kernel": 2,
    f"{OPS}.attention.metadata:get_num_kv_splits_triton": 1,
    f"{OPS}.attention.position:compute_position_kernel": 1,
    f"{OPS}.kvcache.cache_ops:concat_and_cast_mha_k_kernel": 1,
    f"{OPS}.kvcache.kv_indices:create_flashinfer_kv_indices_triton": 2,
    f"{OPS}.kvcache.trtllm_mha_graph_metadata:update_trtllm_mha_graph_metadata_kernel": 1,
    f"{OPS}.kvcache.trtllm_mha_page_table:create_trtllm_mha_kv_indices_triton": 1,
    f"{OPS}.memory.allocator:alloc_decode_kernel": 1,
    f"{OPS}.memory.allocator:alloc_extend_kernel": 1,
    f"{OPS}.memory.common:write_req_to_token_pool_triton": 1,
}
# From which module SGLang 0.5.23 has moved some to another.
_MOVED = {
    f"{OPS}.kvcache.cache_ops": f"{OPS}.attention.mla_qk_prep",
    f"{OPS}.kvcache.kv_indices": f"{OPS}.attention.kv_indices",
    f"{OPS}.kvcache.trtllm_mha_graph_metadata": f"{OPS}.attention.trtllm_mha_graph_metadata",
    f"{OPS}.kvcache.trtllm_mha_page_table": f"{OPS}.attention.trtllm_mha_page_table",
}


def _name(kernel: str) -> str:
    module, _, name = kernel.partition(":")
    return f"{module if version('sglang') == '0.5.17' else _MOVED.get(module, module)}:{name}"


KERNELS = {_name(kernel): num_variants for kernel, num_variants in _VARIANTS.items()}
