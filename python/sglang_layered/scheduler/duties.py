"""What SGLang's loop does with a batch beside running it, for the steps in which ours runs it instead.

`test/patches/stock_calls.toml` lists every call of SGLang's loops and what stands in for it.
Upstream: srt/managers/scheduler.py `get_next_batch_to_run`, `run_batch`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.observability.req_time_stats import set_schedule_time_batch

from sglang_layered.errors import UnsupportedError


def refuse_unfit_server(scheduler: Any) -> None:
    """Refuse what two batches in one step cannot serve, asked of the running scheduler.

    Flags that lead here are refused before (refusals.py); a model or a default of SGLang's may as well.

    Raises:
        UnsupportedError: the ranks agree on the batch of every step, or tokens are embedded by a table
            that decode graphs do not keep.
    """
    if scheduler.require_mlp_sync:
        raise UnsupportedError(
            "--prefill-mode layered does not work with MLP layers that gather rows over the ranks: the ranks"
            " agree on the sizes of one batch a step and a layered step runs two; leave --moe-a2a-backend,"
            " --moe-dense-tp-size and --enable-dp-attention out"
        )
    if scheduler.ngram_embedding_manager.enabled:
        raise UnsupportedError(
            f"--prefill-mode layered cannot serve {scheduler.server_args.model_path}: it embeds n-grams of"
            " tokens, which is not tested; serve it in chunked mode"
        )


def ready_to_decode(scheduler: Any, batch: ScheduleBatch) -> ScheduleBatch:
    """Do to a decode batch what SGLang does after `update_running_batch`, before it runs the batch."""
    batch = scheduler.dp_attn_adapter.maybe_prepare_mlp_sync_batch(batch)
    batch = scheduler.ngram_embedding_manager.prepare_for_forward(batch, chunked_req=scheduler.chunked_req)
    set_schedule_time_batch(batch)
    return batch


def admit_waiting_grammars(scheduler: Any) -> None:
    """Queue requests whose grammar has been compiled; SGLang does so where it looks for new prompts."""
    if scheduler.grammar_manager.has_waiting_grammars():
        for req in scheduler.grammar_manager.get_ready_grammar_requests():
            scheduler._add_request_to_queue(req)


def begin_launch(scheduler: Any, stage: ScheduleBatch, batches: Sequence[ScheduleBatch]) -> None:
    """Count and stamp a step as `run_batch` does one batch; `batches` are all that the step runs.

    The profiler counts the step once, as the stage of `stage`. A prompt keeps the time of its first group:
    SGLang takes the time from there to its result as the prompt's busy time.
    """
    scheduler.forward_ct += 1
    for batch in batches:
        batch.forward_iter = scheduler.forward_ct
        if batch.launch_ts is None or batch.forward_mode.is_decode():
            batch.launch_ts = time.monotonic()
        if scheduler.scripted_scheduler_hook is not None:
            scheduler.scripted_scheduler_hook.on_run_batch(batch)
    scheduler.profiler_manager._profile_batch_predicate(stage)
    if scheduler.forward_sleep_time is not None:
        time.sleep(scheduler.forward_sleep_time)
