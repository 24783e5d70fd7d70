"""Launches a layered step and does what `Scheduler.run_batch` does around a forward.

Upstream: srt/managers/scheduler.py `run_batch`, srt/managers/tp_worker.py `forward_batch_generation`.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from sglang.srt.managers.overlap_utils import resolve_forward_inputs
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.observability.req_time_stats import set_schedule_time_batch

from sglang_layered.runner.layered_runner import GroupStep, LayeredRunner
from sglang_layered.scheduler.batch import LayerGroupBatch


class StepLauncher:
    """Turns a LayerGroupBatch into a forward and its outputs into SGLang's batch results."""

    def __init__(self, scheduler: Any, runner: LayeredRunner) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._model_runner = scheduler.tp_worker.model_runner

    def launch(self, batch: LayerGroupBatch) -> tuple[Any, Any]:
        """Run the step; returns the decode's result and the cohort's, each None where there is none."""
        self._begin(batch)
        inflight = batch.inflight
        if inflight.forward is None:
            inflight.forward = self._prepare(inflight.batch)
        decode = None if batch.decode is None else self._prepare(batch.decode)
        step = GroupStep(inflight.forward, decode, batch.group, inflight.parked)
        output, recorded = self._runner.forward(step)
        inflight.parked = output.parked
        decode_result = cohort_result = None
        if batch.decode is not None:
            decode_result = self._finish(batch.decode, decode, output.decode_logits, recorded)
        if output.prompt_logits is not None:
            cohort_result = self._finish(inflight.batch, inflight.forward, output.prompt_logits, recorded)
        return decode_result, cohort_result

    def _begin(self, batch: LayerGroupBatch) -> None:
        scheduler = self._scheduler
        scheduler.forward_ct += 1
        fresh = [] if batch.inflight.forward is not None else [batch.inflight.batch]
        for part in [*fresh, *([batch.decode] if batch.decode is not None else [])]:
            part.launch_ts = part.fpm_start_time = time.monotonic()
            set_schedule_time_batch(part)
        for part in (batch.inflight.batch, batch.decode):
            if part is not None:
                part.forward_iter = scheduler.forward_ct
        scheduler.profiler_manager._profile_batch_predicate(batch.inflight.batch)
        if scheduler.forward_sleep_time is not None:
            time.sleep(scheduler.forward_sleep_time)

    def _prepare(self, batch: ScheduleBatch) -> ForwardBatch:
        resolve_forward_inputs(batch, self._scheduler.future_map)
        self._scheduler.tp_worker.set_hicache_consumer(batch.hicache_consumer_index)
        return ForwardBatch.init_new(batch, self._model_runner, return_hidden_states_before_norm=False)

    def _finish(
        self, batch: ScheduleBatch, forward: Any, logits: Any, recorded: Any
    ) -> GenerationBatchResult:
        result = GenerationBatchResult(
            logits_output=logits,
            can_run_cuda_graph=recorded.can_run_graph,
            expert_distribution_metrics=recorded.expert_distribution_metrics,
        )
        result.next_token_ids = self._sample(forward, logits)
        self._scheduler._relay_forward_payload(batch.req_pool_indices, result)
        batch.input_ids = None
        self._scheduler.update_cache_from_scheduler(batch, result)
        if batch.return_logprob or batch.return_hidden_states:
            result.extend_input_len_per_req = [
                req.extend_range.length if req.extend_range is not None else 0 for req in batch.reqs
            ]
        if batch.return_logprob:
            result.extend_logprob_start_len_per_req = batch.extend_logprob_start_lens
        return result

    def _sample(self, forward: ForwardBatch, logits: Any) -> torch.Tensor:
        if not forward.is_prefill_only:
            return self._model_runner.sample(logits, forward)
        if forward.return_logprob and logits.next_token_logits is not None:
            self._model_runner.compute_logprobs_only(logits, forward)
        return torch.zeros(len(forward.seq_lens), dtype=torch.long, device=forward.input_ids.device)
