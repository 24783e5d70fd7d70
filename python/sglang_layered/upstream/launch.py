"""Launches a layered step and does what SGLang does around a forward.

`upstream/guards.toml` lists every call of SGLang's loops and what stands in for it. Upstream:
srt/managers/scheduler.py `get_next_batch_to_run`, `run_batch`; srt/managers/tp_worker.py
`forward_batch_generation`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from sglang.srt.managers.overlap_utils import resolve_forward_inputs
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch
from sglang.srt.observability.req_time_stats import set_schedule_time_batch
from sglang.srt.utils.nvtx_utils import scheduler_nvtx_method

from sglang_layered.errors import UnsupportedError
from sglang_layered.runner.execution import Execution
from sglang_layered.runner.layered_runner import GroupStep, StepOutput
from sglang_layered.scheduler.batch import LayerGroupBatch
from sglang_layered.upstream.hicache import NOBODY, loads_of
from sglang_layered.upstream.lora import Adapters
from sglang_layered.upstream.releases import requests, serving


class StepLauncher:
    """Turns a LayerGroupBatch into a forward and its outputs into SGLang's batch results.

    Raises:
        UnsupportedError: the model or its ranks cannot take two batches in a step.
    """

    may_settle = False  # whether a launch may need the results that are pending

    def __init__(self, scheduler: Any, execution: Execution) -> None:
        refuse_unfit_server(scheduler)
        self._scheduler = scheduler
        self._execution = execution
        self._model_runner = scheduler.tp_worker.model_runner
        self._adapters = Adapters.of(self._model_runner)
        self._read_done: Any = None
        # Speculative decoding has others.
        self._begin, self._prompt_hidden_states = begin_launch, None
        self._shared: StepOutput | None = None  # of this step, where its group ran in its decode's forward

    @scheduler_nvtx_method("scheduler.run_batch")
    def launch(
        self, step: LayerGroupBatch, strategy: str | None
    ) -> list[tuple[ScheduleBatch, GenerationBatchResult]]:
        """Run the step; gives the decode's batch and result, and the cohort's after its last group."""
        batches = [step.inflight.batch] if step.decode is None else [step.inflight.batch, step.decode]
        self._begin(self._scheduler, step.inflight.batch, batches)
        if not self._scheduler.enable_overlap:
            return self._forward(step, strategy)
        scheduler = self._scheduler
        with scheduler.forward_stream_ctx:
            scheduler.forward_stream.wait_stream(scheduler.schedule_stream)
            results = self._forward(step, strategy)
        # Where SGLang's own decode graph ran, it says that it has read the request pool; the prompt has not.
        setattr(serving.reader_of(scheduler.model_worker), serving.READ_DONE, self._read_done)
        scheduler._apply_war_barrier()
        return results

    def _forward(
        self, step: LayerGroupBatch, strategy: str | None
    ) -> list[tuple[ScheduleBatch, GenerationBatchResult]]:
        inflight = step.inflight
        if step.decode is not None:
            resolve_forward_inputs(step.decode, self._scheduler.future_map)
        if not inflight.has_begun:
            resolve_forward_inputs(inflight.batch, self._scheduler.future_map)
        with self._isolated(step):
            group_step = self._group_step(step)
            output = self._shared or self._execution.run(group_step, strategy)
            results, inflight.parked, inflight.has_begun = [], output.parked, True
            self._read_done = output.read_done
            if step.decode is not None:
                result = self._result(
                    step.decode, group_step.decode, output.decode_logits, output.decode_record
                )
                results.append((step.decode, result))
            if output.prompt_logits is not None:
                result = self._result(
                    inflight.batch, inflight.forward, output.prompt_logits, output.prompt_record
                )
                results.append((inflight.batch, result))
        for batch, result in results:
            batch.input_ids = None
            note_extends(batch, result)
        return results

    def _group_step(self, step: LayerGroupBatch) -> GroupStep:
        """The step for the runner; inside SGLang's isolation of its forward."""
        scheduler, inflight = self._scheduler, step.inflight
        if self._adapters is not None:
            decodes = [] if step.decode is None else [step.decode]
            self._adapters.fetch(inflight.batch, *step.parked, *decodes)
        is_new = inflight.forward is None or inflight.parked is None
        runs = self._model_runner, self._adapters
        if inflight.forward is None:
            inflight.forward = forward_of(*runs, inflight.batch, self._prompt_hidden_states)
        decode = None if step.decode is None else forward_of(*runs, step.decode)
        if scheduler.enable_overlap:
            # Hold the cohort's tensors in this step's ring slot: it may be dropped while the forward runs.
            tensors = list(vars(inflight.batch).values())
            slot = scheduler.batch_record_buf[scheduler.batch_record_ct]
            slot.extend([inflight.batch, tensors, inflight.forward, inflight.parked])
        scheduler.tp_worker.set_hicache_consumer(NOBODY)
        group_step = GroupStep(inflight.forward, decode, step.group, inflight.parked, is_new)
        group_step.images = inflight.to_encode
        if inflight.batch.hicache_consumer_index != NOBODY:
            group_step.loads = partial(loads_of, scheduler.tp_worker, inflight.batch)
        return group_step

    @contextmanager
    def _isolated(self, step: LayerGroupBatch) -> Iterator[None]:
        """SGLang's isolation of a forward under overlap: both batches share one slot of its ring of two."""
        scheduler = self._scheduler
        if not scheduler.enable_overlap:
            yield
            return
        # Of batches whose ForwardBatch is made in this step; of a cohort alone its own.
        batches = [] if step.decode is None else [step.decode]
        if not batches or step.inflight.forward is None:
            batches.append(step.inflight.batch)
        with scheduler._forward_isolation(batches[0], overlap=True):
            if len(batches) == 1:
                yield
                return
            with scheduler._forward_isolation(batches[1], overlap=False):
                yield

    def _result(
        self, batch: ScheduleBatch, forward: Any, logits: Any, recorded: Any
    ) -> GenerationBatchResult:
        result = GenerationBatchResult(
            logits_output=logits,
            can_run_cuda_graph=recorded.can_run_graph,
            routed_experts_output=recorded.routed_experts_output,
            expert_distribution_metrics=recorded.expert_distribution_metrics,
        )
        if self._scheduler.enable_overlap:
            self._finish_overlapped(batch, forward, result)
        else:
            result.next_token_ids = sample(self._model_runner, forward, logits)
            serving.relay(self._scheduler, batch, batch.req_pool_indices, result)
            self._scheduler.update_cache_from_scheduler(batch, result)
            if serving.copy_rest is not None:
                serving.copy_rest(self._scheduler, batch, result)
        return result

    def _finish_overlapped(self, batch: ScheduleBatch, forward: Any, result: GenerationBatchResult) -> None:
        """Sample and start the copy to the host; with a grammar both wait for the step before this one."""
        scheduler = self._scheduler
        indices = batch.req_pool_indices
        scheduler.future_map.publish(indices, batch.seq_lens + 1)
        result.copy_done = scheduler.device_module.Event()
        if forward.sampling_info.grammars is not None:

            def sample_later() -> GenerationBatchResult:
                result.next_token_ids = sample(self._model_runner, forward, result.logits_output)
                return result

            result.delay_sample_func, result.future_indices = sample_later, indices
            return
        result.next_token_ids = sample(self._model_runner, forward, result.logits_output)
        serving.relay(scheduler, batch, indices, result)
        serving.copy_to_host(scheduler, result, batch)


def forward_of(
    model_runner: Any,
    adapters: Adapters | None,
    batch: ScheduleBatch,
    hidden_states: CaptureHiddenMode | None = None,
) -> ForwardBatch:
    """The forward's view of a batch, which gives these rows' hidden states; None: those requests ask for."""
    wanted = {"capture_hidden_mode": hidden_states, "return_hidden_states_before_norm": False}
    if adapters is None:
        return ForwardBatch.init_new(batch, model_runner, **wanted)
    with adapters.kept_apart():
        forward = ForwardBatch.init_new(batch, model_runner, **wanted)
    adapters.note(forward)
    return forward


def note_extends(batch: ScheduleBatch, result: GenerationBatchResult) -> None:
    """Keep what SGLang needs to cut log-probabilities and hidden states by requests."""
    if batch.return_logprob or batch.return_hidden_states:
        result.extend_input_len_per_req = requests.extend_lens(batch)
    if batch.return_logprob:
        result.extend_logprob_start_len_per_req = batch.extend_logprob_start_lens


def sample(model_runner: Any, forward: ForwardBatch, logits: Any) -> torch.Tensor:
    """Next tokens [requests]; requests that only want log-probabilities get zeros, as in SGLang.

    Upstream: srt/managers/tp_worker.py `forward_batch_generation`.
    """
    if not forward.is_prefill_only:
        return model_runner.sample(logits, forward)
    if forward.return_logprob and logits.next_token_logits is not None:
        model_runner.compute_logprobs_only(logits, forward)
    return torch.zeros(len(forward.seq_lens), dtype=torch.long, device=forward.input_ids.device)


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


def is_paused(scheduler: Any) -> bool:
    """True while an operator holds the engine."""
    if scheduler._engine_paused:
        serving.note_paused(scheduler)
    return bool(scheduler._engine_paused)


def run_stock(scheduler: Any, batch: ScheduleBatch) -> Any:
    """SGLang's own launch of one batch; gives its result."""
    result = scheduler.run_batch(batch)
    if scheduler.enable_overlap:
        scheduler._apply_war_barrier()
    return result


def begin_launch(scheduler: Any, stage: ScheduleBatch, batches: Sequence[ScheduleBatch]) -> None:
    """Count and stamp a step as `run_batch` does one batch; `batches` are all that the step runs.

    The profiler counts the step once, as the stage of `stage`. A prompt keeps the time of its first group:
    SGLang takes the time from there to its result as the prompt's busy time.
    """
    scheduler.forward_ct += 1
    if serving.note_launch is not None:
        serving.note_launch(scheduler, batches)
    for batch in batches:
        batch.forward_iter = scheduler.forward_ct
        if batch.launch_ts is None or batch.forward_mode.is_decode():
            batch.launch_ts = time.monotonic()
        if scheduler.scripted_scheduler_hook is not None:
            scheduler.scripted_scheduler_hook.on_run_batch(batch)
    scheduler.profiler_manager._profile_batch_predicate(stage)
    if scheduler.forward_sleep_time is not None:
        time.sleep(scheduler.forward_sleep_time)
