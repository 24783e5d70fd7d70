"""SGLang's recurrent layers: one state a request and layer, in a slot of a pool of its own.

A prompt's rows move the states of its group's layers on and no others, so groups fit. What is left to see to:
states start once a cohort, and what one that is dropped or cut leaves behind. Upstream:
srt/mem_cache/memory_pool.py `HybridReqToTokenPool`, srt/mem_cache/mamba_radix_cache.py.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.mem_cache.memory_pool import HybridReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.runtime_context import get_context, get_schedule

from sglang_layered.models.refused import has_mamba2_layers
from sglang_layered.upstream.releases import arguments

logger = logging.getLogger(__name__)

# Where a prompt's forward keeps states for the prefix cache (extra_buffer), one entry a request.
TRACKED = ("mamba_track_indices", "mamba_track_mask", "mamba_track_seqlens")


ONE_PROMPT = (
    "--mamba-radix-cache-strategy %s: prompts come one a batch (--prefill-max-requests 1), because with"
    " Mamba2 layers SGLang files states of other tokens for the others of a batch (its issue 31833); with"
    " no_buffer and --disable-overlap-schedule they come together"
)


def keep_right_states(scheduler: Any) -> None:
    """One prompt a batch where SGLang's prefix cache would get states of other tokens for the others.

    It looks for a prompt's states among those of its batch as if prompts were cut into chunks one by one;
    Mamba2's kernel cuts the batch. Upstream: srt/layers/attention/hybrid_linear_attn_backend.py
    `_init_track_ssm_indices`, sgl-project/sglang issue 31833.
    """
    args = arguments.resolved(scheduler.server_args)
    if not has_mamba2_layers(scheduler.model_config) or not arguments.keeps_states_on_the_way(args):
        return
    if get_schedule().prefill_max_requests != 1:
        logger.warning(ONE_PROMPT, args.mamba_radix_cache_strategy)
        get_context().override(source="layered", prefill_max_requests=1)


def has_states(model_runner: Any) -> bool:
    """True for a model with recurrent layers."""
    return isinstance(model_runner.req_to_token_pool, HybridReqToTokenPool)


def start_states(model_runner: Any, prompt: ForwardBatch) -> None:
    """Let a cohort's states start, in all layers, from zeros or from those of the prefix that was found.

    Before its first group, and never again: later groups have moved on what lies there. `_forward_raw` does
    this behind the seam. A ForwardBatch that is made anew for a cohort's remaining requests asks for nothing.
    """
    model_runner._maybe_execute_deferred_mamba_cow_and_clear(prompt)


def clear_states(model_runner: Any, prompt: ForwardBatch) -> None:
    """Let the states of a prompt that is no request start from zeros; SGLang does it once a request."""
    states: HybridReqToTokenPool = model_runner.req_to_token_pool
    prompt.mamba_clear_indices = states.get_mamba_indices(prompt.req_pool_indices)
    start_states(model_runner, prompt)


@contextmanager
def still_tracked(batch: ScheduleBatch, keep: Sequence[int]) -> Iterator[None]:
    """Inside, SGLang cuts a prompt batch to the requests at these indices.

    It forgets there what is tracked for the prefix cache. The requests still say that a state was kept at
    `mamba_last_track_seqlen`, which would then be so in the layers up to the cut alone.
    """
    tracked = {name: value for name in TRACKED if (value := getattr(batch, name)) is not None}
    yield
    for name, value in tracked.items():
        setattr(batch, name, value[list(keep)])
