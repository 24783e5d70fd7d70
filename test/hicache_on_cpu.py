"""Lets SGLang's hierarchical cache run without CUDA, in a process that is for nothing else.

Host memory is not registered, and a transfer copies by indexing. A layer's load is put off until somebody
waits for its event: who reads a layer without having waited reads what was there before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.managers import cache_controller
from sglang.srt.mem_cache.pool_host import base, common, mha


class LazyLoads:
    """Loads of layers that come when they are waited for."""

    def __init__(self) -> None:
        self.pending: dict[int, Callable[[], None]] = {}
        self.num_put_off = self.num_waited = 0
        self.layers: list[int] = []  # waited for, in order

    def install(self) -> None:
        """Put them where SGLang loads at once."""
        pool_class, event_class = mha.MHATokenToKVPoolHost, cache_controller.LayerLoadingEvent
        load, init, loads = pool_class.load_to_device_per_layer, event_class.__init__, self

        def put_off(
            pool: Any, device: Any, host: Any, slots: Any, layer: int, backend: str, **more: Any
        ) -> None:
            loads.pending[layer] = lambda: load(pool, device, host, slots, layer, backend, **more)
            loads.num_put_off += 1

        def made(event: Any, num_layers: int) -> None:
            init(event, num_layers)
            event.loads = {}

        def complete(event: Any, layer: int) -> None:
            event.loads[layer] = loads.pending.pop(layer)

        def wait(event: Any, layer: int) -> None:
            call = event.loads.pop(layer, None)
            if call is not None:
                call()
                loads.num_waited += 1
                loads.layers.append(layer)

        pool_class.load_to_device_per_layer = put_off
        event_class.__init__, event_class.complete, event_class.wait = made, complete, wait


def copy_by_index(
    src_layers: Any, dst_layers: Any, src_indices: Any, dst_indices: Any, page_size: int
) -> None:
    """SGLang's direct transfer; it names its arguments."""
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices.long()] = source[src_indices.long()]


def stand_in() -> LazyLoads:
    """What needs CUDA, replaced."""
    common._cuda_host_register = lambda *_: None
    mha.transfer_kv_direct = copy_by_index
    for module in (base, mha):
        module.HICACHE_HOST_MEMORY_RESERVE_BYTES = -(8 << 30)  # reserve nothing
    loads = LazyLoads()
    loads.install()
    return loads
