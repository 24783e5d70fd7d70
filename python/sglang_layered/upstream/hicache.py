"""SGLang's hierarchical cache: KV that comes back from host memory, layer by layer, while a cohort runs.

Attention waits for a layer's load where it reads its KV, if the one "consumer index" of the pool names it.
So the index is a cohort's while its group's layers run, in each of its groups, and nobody's at any other
time: decode rows in other layers have nothing to wait for. Upstream: srt/managers/cache_controller.py.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.upstream.releases import serving

NOBODY = -1


def forward_stream(scheduler: Any) -> AbstractContextManager[Any]:
    """The stream on which cohorts are computed: without overlap it is the scheduler's own."""
    if not (scheduler.enable_overlap or serving.ranks_of(scheduler).pp_size > 1):
        return nullcontext()
    return scheduler.forward_stream_ctx


@contextmanager
def loads_of(worker: Any, batch: ScheduleBatch) -> Iterator[None]:
    """Layers inside wait for what is loaded for this batch."""
    worker.set_hicache_consumer(batch.hicache_consumer_index)
    try:
        yield
    finally:
        worker.set_hicache_consumer(NOBODY)


def wait_for_loads(scheduler: Any, batch: ScheduleBatch) -> None:
    """Let the cohorts' stream wait for all layers that are loaded for a batch.

    A batch that is dropped will not wait for its last layers. The next one that hits its prefix finds it on
    the device already, has no load to wait for, and would read layers that are still on their way.
    """
    index, counter = batch.hicache_consumer_index, scheduler.tp_worker.hicache_layer_transfer_counter
    if counter is None or index == NOBODY:
        return
    with forward_stream(scheduler):
        for layer in range(counter.num_layers):
            counter.events[index].wait(layer)
