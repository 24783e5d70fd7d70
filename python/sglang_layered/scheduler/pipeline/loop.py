"""Layered mode with `--pp-size` above 1, inside SGLang's own pipeline loop.

SGLang's loop gives each micro-batch its turn on every stage; a turn is a tick here. In a tick the
micro-batch's requests decode through all layers of the stage, and each cohort in flight goes through one
group on the stage where it is, beside whatever micro-batch has its turn there. So a cohort takes one tick a
group, whichever micro-batches pass, and up to one cohort a stage is in flight. Every rank schedules for
itself and comes to the same ticks, as in SGLang. Upstream: srt/managers/scheduler_pp_mixin.py
`event_loop_pp`.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

from sglang.srt.distributed.utils import get_pp_indices
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import NextBatchPlan
from sglang.srt.managers.scheduler_pp_mixin import PPBatchMetadata
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors

from sglang_layered.config import LayeredConfig
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.events import DropReason
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.core.view import StepTiming
from sglang_layered.listeners.dispatch import find_listeners
from sglang_layered.models.layer_shapes import served_layer_shapes
from sglang_layered.runner.stage_runner import StageRunner
from sglang_layered.scheduler.control import Controls
from sglang_layered.scheduler.drop import filter_running
from sglang_layered.scheduler.duties import ready_to_decode
from sglang_layered.scheduler.metrics import LoopMetrics
from sglang_layered.scheduler.observer import tell_observer
from sglang_layered.scheduler.pipeline.chunks import LaunchedChunk, requeue_chunk_without_room, stand_in
from sglang_layered.scheduler.pipeline.cohorts import StageCohorts
from sglang_layered.scheduler.pipeline.launch import StageLauncher
from sglang_layered.scheduler.pipeline.stock import Stock
from sglang_layered.scheduler.pipeline.tick import LaunchedBatch, PipelineTick, TickResult
from sglang_layered.scheduler.planning import Planner, warn_of_dense
from sglang_layered.scheduler.report import Reporter, listener_specs
from sglang_layered.scheduler.results import LaunchedStep, Outcome
from sglang_layered.scheduler.room import last_one_has_no_room
from sglang_layered.scheduler.spans import trace_group
from sglang_layered.scheduler.timer import StepTimer

logger = logging.getLogger(__name__)


class PipelineLoop:
    """Takes the place of what SGLang's pipeline loop calls: the next batch, its launch, its results."""

    def __init__(self, scheduler: Any, config: LayeredConfig) -> None:
        self.scheduler = scheduler
        self.stages = pipeline_stages(scheduler)
        # The policy plans each stage by itself, so the smallest stage limits the number of groups.
        self.controls = Controls(scheduler, config, min(layers.num_layers for layers in self.stages.layers))
        shapes = served_layer_shapes(scheduler.model_config)
        warn_of_dense(shapes)
        self._planners = [
            Planner(scheduler, self.controls, layers.num_layers, shapes[layers.start : layers.end])
            for layers in self.stages.layers
        ]
        self.report = Reporter(scheduler, find_listeners(listener_specs(scheduler, config)))
        self._metrics = LoopMetrics(scheduler, config)
        self.controls.changed.append(self._mode_changed)
        self.cohorts = StageCohorts(scheduler, self.stages, self._heard_of_drop, self._heard_of_leavers)
        self._launched: dict[int, LaunchedBatch] = {}  # SGLang's own batches, by id
        self._launcher = StageLauncher(scheduler, StageRunner(scheduler.tp_worker.model_runner))
        self._stock = Stock(scheduler)
        scheduler.get_next_batch_to_run = self.next_batch
        scheduler._pp_launch_batch = self.launch
        scheduler._pp_prep_batch_result = self.results
        scheduler._pp_process_batch_result = self.process

    @classmethod
    def start(cls, scheduler: Any) -> None:
        """Attach a loop to the scheduler and run SGLang's pipeline loop."""
        loop = cls(scheduler, LayeredConfig.from_server_args(scheduler.server_args))
        scheduler.layered_loop = loop
        logger.info("Layered prefill: stages %s, policy %s", loop.stages.cuts, loop.controls.policy_text)
        scheduler.event_loop_pp()

    def next_batch(self, running_batch: ScheduleBatch, last_batch: Any) -> NextBatchPlan:
        """What the micro-batch whose turn it is runs; a tick while a cohort is in flight."""
        last = _to_merge(last_batch)
        self.cohorts.let_aborted_leave()
        self._make_room(running_batch)
        plan = self._next_plan(running_batch, last)
        if plan.batch_to_run is None:
            self._forget_merged(last_batch)
        return plan

    def _next_plan(self, running_batch: ScheduleBatch, last: ScheduleBatch | None) -> NextBatchPlan:
        if self._may_admit():
            plan = self._stock.next_batch(running_batch=running_batch, last_batch=last)
        else:
            plan = self._stock.next_decode(running_batch=running_batch, last_batch=last)
        batch, running = plan.batch_to_run, plan.running_batch
        if batch is not None and batch.forward_mode.is_extend():
            if not self.controls.is_layered or (not self.cohorts and not self._somebody_decodes(running)):
                return plan
            inflight = self.cohorts.admit(batch, self._plan(batch))
            self._metrics.admitted(inflight)
            self.report.admitted(inflight)
            batch, running = self._decode(running)
        if not self.cohorts:
            return NextBatchPlan(batch_to_run=batch, running_batch=running)
        if not self._somebody_decodes(running):
            self.cohorts.hurry()
        tick = PipelineTick(batch, self.cohorts.works(), tuple(self.cohorts.inflight))
        return NextBatchPlan(tick, running)

    def launch(
        self, mb_id: int, batch: Any, received: PPProxyTensors, metadata: list[Any], outputs_queue: Any
    ) -> tuple[Any, Any]:
        """Run a micro-batch's turn on this stage."""
        scheduler = self.scheduler
        if not isinstance(batch, PipelineTick):
            timer = StepTimer.start(scheduler)
            launched = self._stock.launch(mb_id, batch, received, metadata, outputs_queue)
            timer.stop()
            self._launched[id(batch)] = LaunchedBatch.of(batch, scheduler.forward_ct, timer)
            return launched
        with scheduler.forward_stream_ctx:
            scheduler.forward_stream.wait_stream(scheduler.schedule_stream)
            result, outputs = self._launcher.launch(mb_id, batch, received)
            event = scheduler.device_module.Event()
            event.record(scheduler.device_module.current_stream())
        metadata[mb_id] = PPBatchMetadata(can_run_cuda_graph=False)
        if scheduler.pp_group.is_last_rank:
            outputs_queue.append((event, PPProxyTensors(outputs)))
        if batch.completed is not None:
            batch.chunk = LaunchedChunk.of(batch.completed.batch)
        self.cohorts.advance(batch.works)
        return result, event

    def results(self, batch: Any, metadata: Any, outputs: PPProxyTensors) -> Any:
        """SGLang's results from the outputs that the last stage sent round."""
        if not isinstance(batch, PipelineTick):
            return self._stock.results(batch, metadata, outputs)
        return self._launcher.results(batch, outputs, self._stock.results, metadata)

    def process(self, batch: Any, result: Any) -> None:
        """Hand results to SGLang, and the step to the listeners."""
        parts = result.parts if isinstance(result, TickResult) else [(batch, result)]
        launched = batch if isinstance(batch, PipelineTick) else self._launched.pop(id(batch))
        step = self._step(launched, parts)
        prompts = [part for part, _ in parts if part.forward_mode.is_extend()]
        with stand_in(prompts[0], launched.chunk) if prompts else nullcontext():
            decoded = self.report.reqs_to_get_a_token(step)
            tell_observer(self.scheduler, step, self.stages.num_layers)
            for part, part_result in parts:
                self.scheduler.process_batch_result(part, part_result)
        if any(req.finished() for part, _ in parts for req in part.reqs):
            self.cohorts.room_came_free()
        self._tell(step, decoded)
        if isinstance(batch, PipelineTick) and batch.last_group is not None:
            self._metrics.finished(batch.last_group.cohort)

    def _tell(self, step: LaunchedStep, decoded: list[Any]) -> None:
        layers = self.stages.layers[self.scheduler.ps.pp_rank] if step.cohort is None else step.cohort.group
        timing = StepTiming(
            step.kind, step.timer.duration_s(), step.num_decode_rows, sum(step.prompt_rows), layers.num_layers
        )
        self._metrics.stepped(timing, step.strategy)
        self._metrics.in_flight(self.cohorts.inflight)
        if step.cohort is not None:
            reqs = [req for req, _ in step.prompt]
            trace_group(reqs, step.cohort, step.timer.start_s, timing.duration_s, step.number)
        self.report.step_done(step, timing, decoded)

    def on_pause(self) -> None:
        """SGLang is about to retract the requests of the micro-batch whose turn it is: give it those rightly.

        The cohorts' wait again; those of its latest prompts are in its running batch. SGLang's loop does not
        stop for a pause, and the other micro-batches, whose forwards are under way, go on.
        """
        scheduler = self.scheduler
        self.cohorts.requeue(DropReason.PAUSED)
        running, last = scheduler.running_batch, _to_merge(scheduler.last_batch)
        if last is not None and last is not running and last.forward_mode.is_extend():
            chunked = (last.chunked_req, scheduler.chunked_req)
            more = [req for req in last.reqs if req not in running.reqs and req not in chunked]
            running.reqs = [*running.reqs, *more]
        self._forget_merged(scheduler.last_batch)
        scheduler.last_batch = None

    def _step(
        self, launched: PipelineTick | LaunchedBatch, parts: list[tuple[ScheduleBatch, Any]]
    ) -> LaunchedStep:
        """The step as this stage ran it."""
        outcomes = tuple(Outcome(part, part, result) for part, result in parts)
        if isinstance(launched, LaunchedBatch):
            return LaunchedStep(
                launched.number, launched.kind, outcomes, launched.timer, prompt=launched.rows
            )
        if launched.timer is None:
            raise AssertionError("results of a tick that was not launched")
        work = launched.work_on(self.scheduler.ps.pp_rank)
        if work is None:
            return LaunchedStep(launched.number, "decode", outcomes, launched.timer)
        return LaunchedStep(launched.number, "layered", outcomes, launched.timer, work.cohort, work.rows)

    def _make_room(self, running: ScheduleBatch) -> None:
        """Room that SGLang does not look for: for a micro-batch's last request, and for a next chunk."""
        if all(req.finished() for req in running.reqs):
            filter_running(running)  # SGLang clears the mark `batch_is_full` of batches with requests only
        if self.cohorts and last_one_has_no_room(running):
            self.cohorts.requeue(DropReason.KV_POOL_FULL)
        if self._may_admit() and requeue_chunk_without_room(self.scheduler):
            self.cohorts.room_came_free()

    def _forget_merged(self, last_batch: Any) -> None:
        """A turn that runs nothing keeps its micro-batch's last batch; SGLang would merge it once more.

        Its requests may wait or run elsewhere by then.
        """
        kept = self.scheduler.last_mbs
        for index, batch in enumerate(kept):
            if batch is not None and batch is last_batch:
                kept[index] = None

    def _heard_of_leavers(self, cohort: Cohort, reqs: list[Any]) -> None:
        self.report.left(cohort, reqs)

    def _heard_of_drop(self, cohort: Cohort, reason: DropReason) -> None:
        self._metrics.dropped(reason)
        self.report.dropped(cohort, reason)

    def _mode_changed(self, reason: str) -> None:
        config = self.controls.config
        self._metrics.mode_changed(config, reason)
        self.report.mode_changed(config.prefill_mode, reason)

    def _may_admit(self) -> bool:
        """Prompts enter the first stage when it is free; a next chunk when the one before is done."""
        if not self.cohorts:
            return True
        waits = self.scheduler.chunked_req is not None or not self.controls.is_layered
        return not waits and self.cohorts.has_room

    def _decode(self, running: ScheduleBatch) -> tuple[ScheduleBatch | None, ScheduleBatch]:
        if running.is_empty() or running.is_prefill_only:
            return None, running
        running = self.scheduler.update_running_batch(running)
        return (None if running.is_empty() else ready_to_decode(self.scheduler, running)), running

    def _somebody_decodes(self, running: ScheduleBatch) -> bool:
        """In this micro-batch or in any other."""
        batches = [running, *self.scheduler.running_mbs]
        return any(not req.finished() for batch in batches for req in batch.reqs)

    def _plan(self, batch: ScheduleBatch) -> LayerGroupPlan:
        """The policy plans each stage's layers as a model of their own."""
        return self.stages.joined([planner.plan(batch, None) for planner in self._planners])


def pipeline_stages(scheduler: Any) -> PipelineStages:
    """How SGLang lays the model's layers on its stages."""
    num_layers, num_stages = scheduler.model_config.num_hidden_layers, scheduler.ps.pp_size
    ends = [get_pp_indices(num_layers, rank, num_stages)[1] for rank in range(num_stages)]
    return PipelineStages((0, *ends))


def _to_merge(last_batch: Any) -> ScheduleBatch | None:
    """What SGLang may merge into the running batch: a cohort that completed in the last tick."""
    if not isinstance(last_batch, PipelineTick):
        return last_batch
    done = last_batch.completed
    return last_batch.decode if done is None else done.batch
