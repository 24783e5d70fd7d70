"""The functions of `sgl_kernel` that SGLang's CPU path imports, in plain torch: slow, clear and correct.

`sglang_layered.upstream.cpu_kernels` offers this package as `sgl_kernel` where no CUDA driver is, and so the
real wheel cannot be loaded. Nothing is registered in `torch.ops.sgl_kernel`: SGLang would take that for AMX
kernels.
"""

from typing import Any

from sglang_layered_kernels.cpu.kv_cache import assign_req_to_token_pool_cpu, copy_all_layer_kv_cache_cpu
from sglang_layered_kernels.cpu.missing import resolve_missing

__all__ = ["assign_req_to_token_pool_cpu", "copy_all_layer_kv_cache_cpu"]


def __getattr__(name: str) -> Any:
    return resolve_missing("sgl_kernel", name)
