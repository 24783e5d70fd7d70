"""Runs a tick on this rank's stage: rows from the stage before, rows for the next one, tokens on the last.

Upstream: srt/managers/scheduler_pp_mixin.py `_pp_launch_batch`, `_pp_prep_batch_result`, and what SGLang's
pipeline loop calls as it is without layered mode.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.managers.overlap_utils import resolve_forward_inputs
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import NextBatchPlan
from sglang.srt.managers.scheduler_pp_mixin import PPBatchMetadata
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.observability.req_time_stats import set_time_batch
from sglang.srt.utils.nvtx_utils import scheduler_nvtx_method

from sglang_layered.runner.layered_runner import GroupStep, StageOutput, StageRunner
from sglang_layered.scheduler.results import StepTimer
from sglang_layered.scheduler.tick import GroupWork, PipelineTick, TickResult
from sglang_layered.upstream.launch import begin_launch, forward_of, note_extends, refuse_unfit_server, sample
from sglang_layered.upstream.lora import Adapters
from sglang_layered.upstream.releases import serving

DECODE, PROMPT = "decode.", "prompt."


class Stock:
    """SGLang's own methods, kept before those of `loop` take their names."""

    def __init__(self, scheduler: Any, loop: Any) -> None:
        self._scheduler = scheduler
        self.next_batch = scheduler.get_next_batch_to_run
        self.update_running = scheduler.update_running_batch
        self.launch = scheduler._pp_launch_batch
        self.results = scheduler._pp_prep_batch_result
        scheduler.get_next_batch_to_run = loop.next_batch
        scheduler.update_running_batch = loop.update_running
        scheduler._pp_launch_batch = loop.launch
        scheduler._pp_prep_batch_result = loop.results
        scheduler._pp_process_batch_result = loop.process

    def next_decode(
        self,
        running_batch: ScheduleBatch,
        last_batch: Any,
        admit: Callable[[ScheduleBatch], ScheduleBatch | None] = lambda running: None,
    ) -> NextBatchPlan:
        """SGLang's next batch without its admission; a long prompt between two chunks is left alone.

        `admit` is asked for prompts beside the running batch instead.
        """
        with self._closed(admit):
            return self.next_batch(running_batch=running_batch, last_batch=last_batch)

    @contextmanager
    def _closed(self, admit: Callable[[ScheduleBatch], ScheduleBatch | None]) -> Iterator[None]:
        scheduler = self._scheduler
        between = scheduler.chunked_req, scheduler._pending_chunked_abort_req
        scheduler.chunked_req = scheduler._pending_chunked_abort_req = None

        def asked(running: ScheduleBatch) -> NextBatchPlan:
            del scheduler.get_new_batch_prefill  # SGLang's own may be asked in turn
            try:
                return NextBatchPlan(admit(running), running)
            finally:  # from here on it may lose its chunks, for want of slots
                scheduler.chunked_req, scheduler._pending_chunked_abort_req = between

        scheduler.get_new_batch_prefill = asked
        try:
            yield
        finally:
            if vars(scheduler).pop("get_new_batch_prefill", None) is not None:
                scheduler.chunked_req, scheduler._pending_chunked_abort_req = between


class StageLauncher:
    """Turns a PipelineTick into a forward of this stage and what its messages carry.

    Raises:
        UnsupportedError: the model or its ranks cannot take two batches in a step.
    """

    def __init__(self, scheduler: Any, runner: StageRunner) -> None:
        refuse_unfit_server(scheduler)
        self._scheduler = scheduler
        self._runner = runner
        self._model_runner = scheduler.tp_worker.model_runner
        self._adapters = Adapters.of(self._model_runner)
        self._rank = serving.ranks_of(scheduler).pp_rank
        self._is_last = scheduler.pp_group.is_last_rank

    @scheduler_nvtx_method("scheduler.run_batch")
    def launch(
        self, mb_id: int, tick: PipelineTick, received: PPProxyTensors | None
    ) -> tuple[GenerationBatchResult, dict[str, torch.Tensor]]:
        """Run it; gives SGLang's result with the rows to send on and, on the last stage, the outputs."""
        batches = _running(tick)
        reqs = [req for batch in batches for req in batch.reqs]
        set_time_batch(reqs, "set_run_batch_cpu_start_time", trace_only=True)
        begin_launch(self._scheduler, batches[0], batches)
        launched = self._run(tick, received)
        set_time_batch(reqs, "set_run_batch_cpu_end_time", trace_only=True, attrs={"pp_mb_id": mb_id})
        return launched

    def _run(
        self, tick: PipelineTick, received: PPProxyTensors | None
    ) -> tuple[GenerationBatchResult, dict[str, torch.Tensor]]:
        timer, own = StepTimer.start(self._scheduler), tick.work_on(self._rank)
        tick.launched_as(self._scheduler.forward_ct, timer, own)
        rows = {} if received is None else received.tensors
        decode = None if tick.decode is None else self._prepare(tick.decode)
        output = self._forward(own, decode, _part(rows, DECODE))
        self._take_over(tick, rows)
        to_send = self._keep_or_send(own, output) | _named(DECODE, output.decode)
        outputs = self._sample(tick, decode, output) if self._is_last else {}
        result = GenerationBatchResult(
            pp_hidden_states_proxy_tensors=PPProxyTensors(to_send), can_run_cuda_graph=False
        )
        for batch in tick.batches:
            batch.input_ids = None
            self._scheduler.update_cache_from_scheduler(batch, result)
        timer.stop()
        return result, outputs

    def results(self, tick: PipelineTick, outputs: PPProxyTensors, stock: Any, metadata: Any) -> TickResult:
        """SGLang's result of each batch from the last stage's outputs; `stock` is `_pp_prep_batch_result`."""
        parts = []
        for prefix, batch in self._named_batches(tick):
            part = _part(outputs.tensors, prefix)
            if part is None:
                raise AssertionError(f"the last stage sent no {prefix}outputs")
            parts.append((batch, stock(batch, metadata, part)))
        return TickResult(parts)

    def _forward(
        self, own: GroupWork | None, decode: ForwardBatch | None, rows: PPProxyTensors | None
    ) -> StageOutput:
        """The forward of this stage; without a group decode rows go as SGLang sends them."""
        if own is None:
            left = None if decode is None else self._runner.decode_alone(decode, rows).logits_output
            return StageOutput(left, None)
        inflight, group = own.inflight, own.cohort.group
        is_new = own.enters_stage or inflight.forward is None
        if inflight.forward is None:
            inflight.forward = self._prepare(inflight.batch)
        step = GroupStep(inflight.forward, decode, group, inflight.parked, is_new, decode_rows=rows)
        return self._runner.run(step)

    def _take_over(self, tick: PipelineTick, rows: Mapping[str, Any]) -> None:
        """Park the rows of a prompt that the stage before has sent; its first group here is next."""
        arriving = _part(rows, PROMPT)
        if arriving is not None:
            [work] = [work for work in tick.works if work.leaves_stage and work.stage == self._rank - 1]
            work.inflight.parked = arriving

    def _keep_or_send(self, own: GroupWork | None, output: StageOutput) -> dict[str, torch.Tensor]:
        if own is None:
            return {}
        if not own.leaves_stage:
            own.inflight.parked = output.prompt
            return {}
        own.inflight.parked = None
        return {} if self._is_last else _named(PROMPT, output.prompt)

    def _prepare(self, batch: ScheduleBatch) -> ForwardBatch:
        resolve_forward_inputs(batch, self._scheduler.future_map)
        return forward_of(self._model_runner, self._adapters, batch)

    def _sample(
        self, tick: PipelineTick, decode: ForwardBatch | None, output: StageOutput
    ) -> dict[str, torch.Tensor]:
        done = tick.completed
        made = {DECODE: (decode, output.decode)}
        if done is not None:
            made[PROMPT] = (done.forward, output.prompt)
        outputs: dict[str, torch.Tensor] = {}
        for prefix, batch in self._named_batches(tick):
            forward, logits = made[prefix]
            result = GenerationBatchResult(logits_output=logits, can_run_cuda_graph=False)
            result.next_token_ids = sample(self._model_runner, forward, logits)
            serving.relay(self._scheduler, batch, batch.req_pool_indices, result)
            note_extends(batch, result)
            outputs |= {
                prefix + name: value
                for name, value in self._scheduler._pp_prepare_tensor_dict(result, batch).items()
            }
        return outputs

    @staticmethod
    def _named_batches(tick: PipelineTick) -> list[tuple[str, ScheduleBatch]]:
        done = tick.completed
        named = [(DECODE, tick.decode), (PROMPT, None if done is None else done.batch)]
        return [(prefix, batch) for prefix, batch in named if batch is not None]


def launch_apart(
    launcher: Any, scheduler: Any, turn: tuple[int, PipelineTick, Any], metadata: list[Any], queue: Any
) -> tuple[GenerationBatchResult, Any]:
    """Launch on the forward stream, with what SGLang's loop wants to know; gives an event at its end.

    `turn` is the micro-batch's index, its tick and what the stage before has sent.
    """
    with scheduler.forward_stream_ctx:
        serving.wait_for_rows(scheduler)
        result, outputs = launcher.launch(*turn)
        event = scheduler.device_module.Event()
        event.record(scheduler.device_module.current_stream())
    metadata[turn[0]] = PPBatchMetadata(can_run_cuda_graph=False)
    if scheduler.pp_group.is_last_rank:
        queue.append((event, PPProxyTensors(outputs)))
    return result, event


def _running(tick: PipelineTick) -> list[ScheduleBatch]:
    """All batches of a tick on any stage, prompts first: as in a mixed batch they name the stage."""
    prompts = [work.inflight.batch for work in tick.works]
    return prompts if tick.decode is None else [*prompts, tick.decode]


def _named(prefix: str, rows: Any) -> dict[str, torch.Tensor]:
    """Rows under names of their own; logits and nothing at all are not sent."""
    if not isinstance(rows, PPProxyTensors):
        return {}
    return {prefix + name: tensor.contiguous() for name, tensor in rows.tensors.items() if tensor is not None}


def _part(tensors: Mapping[str, Any], prefix: str) -> PPProxyTensors | None:
    found = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    return PPProxyTensors(found) if found else None
