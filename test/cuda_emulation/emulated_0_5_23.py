"""What SGLang 0.5.23 asks of a GPU and 0.5.17 does not."""

from __future__ import annotations

from typing import Any

from emulated_kernels import store_latent
from emulated_streams import CPU


def emulate_0_5_23() -> None:
    """Put it where SGLang asks."""
    import sglang.srt.mem_cache.memory_pool as memory_pool
    from sglang.srt.mem_cache.rust_tree_core.adapter import RustUnifiedTreeCore

    make: Any = RustUnifiedTreeCore.__init__

    def make_on_cpu(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        """The prefix tree compares the device that it is made for with that of the slots that it is given."""
        allocator = params.token_to_kv_pool_allocator
        named, allocator.device = allocator.device, CPU
        make(self, params, *args, **kwargs)
        allocator.device = named

    memory_pool.set_mla_kv_buffer_dcp_sharded_triton = store_latent  # on one rank
    tree: Any = RustUnifiedTreeCore
    tree.__init__ = make_on_cpu
