"""The functions of `sgl_kernel` that SGLang's CPU path imports, in plain torch: slow, clear and correct.

`sglang_layered.upstream.cpu_kernels` offers this package as `sgl_kernel` where no CUDA driver is, and so the
real wheel cannot be loaded. Nothing is registered in `torch.ops.sgl_kernel`: SGLang would take that for AMX
kernels.
"""

from typing import Any

from sglang_layered_kernels.cpu.kv_cache import assign_req_to_token_pool_cpu, copy_all_layer_kv_cache_cpu
from sglang_layered_kernels.cpu.missing import resolve_missing
from sglang_layered_kernels.cpu.speculative import (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    build_tree_kernel_efficient_cpu,
    fill_accept_out_cache_loc_cpu,
    fill_bonus_tokens_cpu,
    rotate_input_ids_cpu,
    verify_tree_greedy_cpu,
)

__all__ = [
    "assign_draft_cache_locs_contiguous_cpu",
    "assign_extend_cache_locs_cpu",
    "assign_req_to_token_pool_cpu",
    "build_tree_kernel_efficient_cpu",
    "copy_all_layer_kv_cache_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "rotate_input_ids_cpu",
    "verify_tree_greedy_cpu",
]


def __getattr__(name: str) -> Any:
    return resolve_missing("sgl_kernel", name)
