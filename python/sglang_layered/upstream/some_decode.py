"""A decode step of some of the running requests: the others sit it out.

The running batch stays whole and SGLang's own, so aborts, pauses, checks and the reserve of KV slots see all
of it. A copy is cut to those that decode and is the step's decode batch; what SGLang counts per request (its
KV, its output, its next token) follows by itself, what it counts per batch is carried over here.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

Choose = Callable[[ScheduleBatch], list[int] | None]


def update_and_choose(scheduler: Any, choose: Choose) -> ScheduleBatch | None:
    """SGLang's update of the running batch; gives what decodes, made ready; None or empty: nobody.

    `choose` gives the indices of those that decode, None for all. It is asked after finished and retracted
    requests have left. With penalties in the batch all decode: SGLang adds up the tokens of a whole batch,
    and with the overlap scheduler a row that sits out would miss one. Upstream: srt/managers/scheduler.py
    `update_running_batch`, srt/managers/schedule_batch.py `cumulate_penalty_output_tokens`.
    """
    running = scheduler.running_batch
    vars(running)["prepare_for_decode"] = lambda: None  # SGLang prepares all where it updates
    try:
        updated: ScheduleBatch | None = scheduler.update_running_batch(running)
    finally:
        del vars(running)["prepare_for_decode"]
    if updated is None or updated.is_empty():
        return updated
    updated.forward_iter = scheduler.forward_ct  # says when slots outside of windows are freed
    keep = None if updated.sampling_info.penalizer_orchestrator.is_required else choose(updated)
    if keep is None:
        updated.prepare_for_decode()
        return updated
    decode = copy(updated)
    decode.sampling_info = copy(updated.sampling_info)
    decode.filter_batch(keep_indices=keep)
    decode.prepare_for_decode()
    _count(updated, keep)
    return decode


def _count(running: ScheduleBatch, keep: Sequence[int]) -> None:
    """These have one token more. New tensors, as in SGLang: a forward may still read the old ones."""
    more = torch.zeros(len(running.reqs), dtype=torch.int64)
    more[list(keep)] = 1
    if running.seq_lens_cpu is not None:
        running.seq_lens_cpu = running.seq_lens_cpu + more
    more = more.to(running.seq_lens.device, non_blocking=True)
    running.seq_lens = running.seq_lens + more
    running.orig_seq_lens = running.orig_seq_lens + more.to(running.orig_seq_lens.dtype)
    running.forward_mode = ForwardMode.DECODE
    running.seq_lens_sum = running.out_cache_loc = running.input_embeds = None
