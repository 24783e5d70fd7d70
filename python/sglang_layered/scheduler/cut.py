"""Takes requests out of a cohort between two layer groups; the rows of the others stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.runner.rows import keep_rows
from sglang_layered.scheduler.batch import InFlightCohort

Keep = Callable[[torch.Tensor], torch.Tensor]


def cut_cohort(scheduler: Any, inflight: InFlightCohort, leaving: Sequence[Any]) -> None:
    """Leave these requests' rows out from the next group on; some other request stays.

    The ForwardBatch is made anew at the next group, and with it the prompt's attention plan. Parked rows and
    input tokens belong to the forward stream and are cut in its order, all else on the scheduler's.
    """
    keep = [index for index, req in enumerate(inflight.reqs) if req not in leaving]
    rows = _part_of(inflight.batch.extend_lens, keep)
    cut_batch(inflight.batch, keep, forward_stream(scheduler))
    if inflight.parked is not None:
        with forward_stream(scheduler):
            inflight.parked = keep_rows(inflight.parked, rows)
    inflight.forward = None
    inflight.cohort = inflight.cohort.without(req.rid for req in leaving)


def forward_stream(scheduler: Any) -> AbstractContextManager[Any]:
    """The stream on which cohorts are computed: without overlap it is the scheduler's own."""
    if not (scheduler.enable_overlap or scheduler.ps.pp_size > 1):
        return nullcontext()
    stream: AbstractContextManager[Any] = scheduler.forward_stream_ctx
    return stream


def cut_batch(batch: ScheduleBatch, keep: list[int], forward_stream: AbstractContextManager[Any]) -> None:
    """Keep the requests at these indices of a prompt batch that has been launched.

    SGLang's own filter is made for decode batches: it takes one row a request and drops what is kept per
    token, so that is cut here. Upstream: `ScheduleBatch.filter_batch`, `ScheduleBatch.prepare_for_extend`.
    """
    rows = _part_of(batch.extend_lens, keep)
    tokens, slots, logprob_ids = batch.input_ids, batch.out_cache_loc, batch.extend_input_logprob_token_ids
    if logprob_ids is not None:
        pairs = zip(batch.extend_lens, batch.extend_logprob_start_lens, strict=True)
        logprob_ids = _part_of([length - start for length, start in pairs], keep)(logprob_ids)
    batch.input_ids = None
    batch.filter_batch(keep_indices=keep)
    batch.out_cache_loc = rows(slots)
    if batch.prefill_input_ids_cpu is not None:  # a pipeline stage that the prompts have not come to
        batch.prefill_input_ids_cpu = rows(batch.prefill_input_ids_cpu)
    if tokens is not None:
        with forward_stream:
            batch.input_ids = rows(tokens)
    for name in ("prefix_lens", "extend_lens", "extend_logprob_start_lens"):
        values = getattr(batch, name)
        setattr(batch, name, [values[index] for index in keep])
    batch.extend_num_tokens = sum(batch.extend_lens)
    batch.extend_input_logprob_token_ids = logprob_ids if batch.return_logprob else None
    batch.input_embeds = batch.replace_embeds = batch.replace_positions = None  # layer 0 has had them
    if batch.chunked_req not in batch.reqs:
        batch.chunked_req = batch.chunked_req_next_prompt_token = None
        batch.contains_last_prefill_chunk = True


def _part_of(lens: Sequence[int], keep: Sequence[int]) -> Keep:
    """What takes the rows of the kept requests out of a tensor that has so many rows for each request."""
    ends = list(accumulate(lens))
    parts = [slice(ends[index] - lens[index], ends[index]) for index in keep]
    return lambda tensor: torch.cat([tensor[part] for part in parts])
