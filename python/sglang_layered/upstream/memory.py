"""The memory of a device while a server starts: what layered mode takes of it, where SGLang counts.

Upstream: srt/model_executor/model_runner_components/kv_pool_runtime.py `compute_post_capture_kv_resize`,
srt/model_executor/graph_memory_usage.py.
"""

import logging
from typing import Any

from sglang.srt.utils import get_available_gpu_memory
from sglang.srt.utils.common import get_device_memory_capacity

from sglang_layered.upstream.releases import arguments

logger = logging.getLogger(__name__)

GRAPHS = "layered_decode"  # SGLang's names of what is captured are "decode", "prefill" and the like
MIB_PER_GIB = 1024


def free_gib(model_runner: Any) -> float:
    """Free memory of this rank's device in GiB."""
    return float(get_available_gpu_memory(model_runner.device, model_runner.gpu_id, empty_cache=True))


def note_graphs(model_runner: Any, gib: float, seconds: float, name: str = GRAPHS) -> None:
    """Let `/server_info` and SGLang's metrics show what the layered graphs cost, beside SGLang's own."""
    model_runner.graph_memory_usage = {**model_runner.graph_memory_usage, name: gib}
    model_runner.graph_time_usage = {**model_runner.graph_time_usage, name: seconds}


def sizes_kv_after_graphs(model_runner: Any) -> bool:
    """True where the KV cache gets what all captures left (SGLANG_ENABLE_POST_CAPTURE_KV_SIZING)."""
    return bool(model_runner.token_to_kv_pool.post_capture_active)


def keep_room_for_prompts(model_runner: Any) -> None:
    """Where SGLang sizes the KV cache after its captures, keep what prompts without graphs need.

    SGLang keeps only --mem-fraction-static free there, since its own prompts run in graphs whose memory is
    taken already. Prompts in layer groups do not. What eager prompts need is SGLang's own estimate; it reads
    this fraction once more, when it sizes the cache.
    """
    capacity_mib = get_device_memory_capacity(model_runner.device)
    needed_gib = arguments.eager_prompt_mib(model_runner.server_args, capacity_mib) / MIB_PER_GIB
    fraction = 1 - needed_gib / model_runner.pre_model_load_memory
    if model_runner.mem_fraction_static > fraction:
        logger.info(
            "The KV cache leaves %.2f GiB for prompts, which layer groups run without CUDA graphs:"
            " --mem-fraction-static %.3f, not %.3f",
            needed_gib,
            fraction,
            model_runner.mem_fraction_static,
        )
        model_runner.mem_fraction_static = fraction
