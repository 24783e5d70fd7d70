"""Layered mode with `--pp-size` above 1, inside SGLang's own pipeline loop.

SGLang's loop gives each micro-batch its turn on every stage; a turn is a tick here. In a tick the
micro-batch's requests decode through all layers of the stage, and each cohort in flight goes through one
group on the stage where it is, beside whatever micro-batch has its turn there. So a cohort takes one tick a
group, whichever micro-batches pass, and up to one cohort a stage is in flight. Every rank schedules for
itself and comes to the same ticks, as in SGLang. Upstream: srt/managers/scheduler_pp_mixin.py
`event_loop_pp`.
"""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from sglang.srt.distributed.utils import get_pp_indices
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import NextBatchPlan
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors

from sglang_layered.config import LayeredConfig
from sglang_layered.core.events import DropReason
from sglang_layered.core.stages import PipelineStages
from sglang_layered.runner.at_start import take_runner
from sglang_layered.runner.layered_runner import StageRunner
from sglang_layered.scheduler.base_loop import BaseLoop
from sglang_layered.scheduler.results import LaunchedStep, Outcome, StepTimer
from sglang_layered.scheduler.stage_overtaking import StageOvertaking
from sglang_layered.scheduler.stream import Overtaken, StepDone
from sglang_layered.scheduler.tick import PipelineTick, TickResult, works_of
from sglang_layered.upstream.chunks import LaunchedChunk, stand_in
from sglang_layered.upstream.launch import ready_to_decode
from sglang_layered.upstream.pipeline import StageLauncher, Stock, launch_apart
from sglang_layered.upstream.releases import serving
from sglang_layered.upstream.room import (
    filter_running,
    is_chunk_aborted,
    last_one_has_no_room,
    preempted_wait,
    wait_again,
)


class PipelineLoop(BaseLoop):
    """Takes the place of what SGLang's pipeline loop calls: the next batch, its launch, its results."""

    def prepare(self, config: LayeredConfig) -> PipelineStages:
        """SGLang's own methods are kept before ours take their names."""
        scheduler = self.scheduler
        # SGLang's own batches, by id
        self._launched: dict[int, tuple[LaunchedStep, LaunchedChunk | None]] = {}
        runner = take_runner(scheduler.tp_worker.model_runner, StageRunner)
        self._launcher = StageLauncher(scheduler, runner)
        self._stock = Stock(scheduler, self)
        return pipeline_stages(scheduler)

    def subscribe(self, config: LayeredConfig) -> None:
        """An operator may change who overtakes."""
        super().subscribe(config)
        self._overtaking = StageOvertaking(self.scheduler, self.cohorts, config)
        self.stream.add(self._overtaking, is_vital=True)

    def run(self) -> None:
        """SGLang's loop calls ours."""
        self.scheduler.event_loop_pp()

    def next_batch(self, running_batch: ScheduleBatch, last_batch: Any) -> NextBatchPlan:
        """What the micro-batch whose turn it is runs; a tick while a cohort is in flight."""
        if self._checker.is_on:
            self._checker.between_steps()
        last = _to_merge(last_batch)
        self.cohorts.let_aborted_leave()
        if all(req.finished() for req in running_batch.reqs):
            filter_running(running_batch)  # SGLang clears `batch_is_full` of batches with requests only
        self.look_at_queue_again()
        if self._may_admit():
            self.make_room_for_chunk()
            if is_chunk_aborted(self.scheduler):
                self.cohorts.room_came_free()
        plan = self._next_plan(running_batch, last)
        if plan.batch_to_run is None:
            self._forget_merged(last_batch)
        return plan

    def update_running(self, running: ScheduleBatch) -> ScheduleBatch | None:
        """SGLang's, once there is room: the last request that decodes never ends for want of others' slots.

        SGLang reserves slots for the requests of a prompt's own micro-batch alone, and aborts the last one of
        another that finds none. Here it waits again, after the cohorts in flight.
        """
        self.make_room(running)
        if last_one_has_no_room(running) and self._others_hold_slots(running):
            wait_again(self.scheduler, running)
        updated: ScheduleBatch | None = self._stock.update_running(running)
        return updated

    def launch(
        self, mb_id: int, batch: Any, received: PPProxyTensors, metadata: list[Any], outputs_queue: Any
    ) -> tuple[Any, Any]:
        """Run a micro-batch's turn on this stage."""
        if isinstance(batch, PipelineTick):
            tick, turn = batch, (mb_id, batch, received)
            launched = launch_apart(self._launcher, self.scheduler, turn, metadata, outputs_queue)
            if tick.completed is not None:
                tick.chunk = LaunchedChunk.of(tick.completed.batch)
            for work in tick.works:
                if work.overtakes is not None:
                    work.overtakes.has_run = False
                    self.stream.emit(Overtaken(work.overtakes))
                self.cohorts.advance(work.inflight)
            return launched
        timer = StepTimer.start(self.scheduler)
        launched = self._stock.launch(mb_id, batch, received, metadata, outputs_queue)
        timer.stop()
        step = LaunchedStep.stock(self.scheduler.forward_ct, batch, timer)
        self._launched[id(batch)] = step, LaunchedChunk.of(batch) if step.prompt else None
        return launched

    def results(self, batch: Any, metadata: Any, outputs: PPProxyTensors) -> Any:
        """SGLang's results from the outputs that the last stage sent round."""
        if not isinstance(batch, PipelineTick):
            return self._stock.results(batch, metadata, outputs)
        return self._launcher.results(batch, outputs, self._stock.results, metadata)

    def process(self, batch: Any, result: Any) -> None:
        """Hand results to SGLang, and the step to who listens."""
        parts = result.parts if isinstance(result, TickResult) else [(batch, result)]
        tick = batch if isinstance(batch, PipelineTick) else None
        step, chunk = self._launched.pop(id(batch)) if tick is None else (tick.step, tick.chunk)
        step = replace(step, outcomes=tuple(Outcome(part, part, made) for part, made in parts))
        prompts = [part for part, _ in parts if part.forward_mode.is_extend()]
        with stand_in(prompts[0], chunk) if prompts else nullcontext():
            self.hand_over(step)
        if any(req.finished() for part, _ in parts for req in part.reqs):
            self.cohorts.room_came_free()
        layers = self.stages.layers[serving.ranks_of(self.scheduler).pp_rank]
        self.stream.emit(StepDone(step, step.timing(layers.num_layers)))

    def on_pause(self) -> None:
        """SGLang is about to retract the requests of the micro-batch whose turn it is: give it those rightly.

        The cohorts' wait again; those of its latest prompts are in its running batch. SGLang's loop does not
        stop for a pause, and the other micro-batches, whose forwards are under way, go on.
        """
        scheduler = self.scheduler
        self.drop(DropReason.PAUSED)
        running, last = scheduler.running_batch, _to_merge(scheduler.last_batch)
        if last is not None and last is not running and last.forward_mode.is_extend():
            chunked = (last.chunked_req, scheduler.chunked_req)
            more = [req for req in last.reqs if req not in running.reqs and req not in chunked]
            running.reqs = [*running.reqs, *more]
        self._forget_merged(scheduler.last_batch)
        scheduler.last_batch = None

    def _others_hold_slots(self, running: ScheduleBatch) -> bool:
        """In any micro-batch; whose cohort was dropped waits again and holds none."""
        scheduler = self.scheduler
        batches = (*scheduler.running_mbs, *scheduler.last_mbs, *scheduler.mbs)
        reqs = chain.from_iterable(batch.reqs for batch in batches if batch is not None)
        reqs = chain(reqs, filter(None, [scheduler.chunked_req]))
        return any(not (req.finished() or req.is_retracted or req in running.reqs) for req in reqs)

    def _next_plan(self, running_batch: ScheduleBatch, last: ScheduleBatch | None) -> NextBatchPlan:
        plan = self._choose(running_batch, last)
        batch, running = plan.batch_to_run, plan.running_batch
        if batch is not None and batch.forward_mode.is_extend():
            may_wait = self._overtaking.is_long(batch) or self._somebody_decodes(running)
            if not self.controls.is_layered or not (self.cohorts.inflight or may_wait):
                return plan
            self.admit(batch, self.plan(batch, None))
            self.cohorts.inflight[-1].urgency = self._overtaking.urgency(batch)
            batch, running = self._decode(running)
        if not self.cohorts.inflight:
            return NextBatchPlan(batch_to_run=batch, running_batch=running)
        if not self._overtaking.is_on and not self._somebody_decodes(running):
            self.cohorts.finish_in_one_step()
        works = works_of(self.cohorts.inflight, self.stages)
        return NextBatchPlan(PipelineTick(batch, works, tuple(self.cohorts.inflight)), running)

    def _choose(self, running_batch: ScheduleBatch, last: ScheduleBatch | None) -> NextBatchPlan:
        overtaking = self._overtaking
        if self._may_admit():
            with overtaking.one_kind_waits(), preempted_wait(self.scheduler, running_batch):
                return self._stock.next_batch(running_batch=running_batch, last_batch=last)
        chosen = overtaking.chosen() if self.controls.is_layered else []
        if not chosen:
            return self._stock.next_decode(running_batch, last)
        return self._stock.next_decode(running_batch, last, partial(overtaking.admit, chosen))

    def _may_admit(self) -> bool:
        """Prompts enter the first stage when it is free; a next chunk when the one before is done."""
        if not self.cohorts.inflight:
            return True
        waits = self.scheduler.chunked_req is not None or not self.controls.is_layered
        return not waits and self.cohorts.has_room

    def _decode(self, running: ScheduleBatch) -> tuple[ScheduleBatch | None, ScheduleBatch]:
        if running.is_empty() or running.is_prefill_only:
            return None, running
        decode = self.scheduler.update_running_batch(running)
        if decode is None or decode.is_empty():
            return None, running
        return ready_to_decode(self.scheduler, decode), running

    def _somebody_decodes(self, running: ScheduleBatch) -> bool:
        """In this micro-batch or in any other."""
        batches = [running, *self.scheduler.running_mbs]
        return any(not req.finished() for batch in batches for req in batch.reqs)

    def _forget_merged(self, last_batch: Any) -> None:
        """A turn that runs nothing keeps its micro-batch's last batch; SGLang would merge it once more.

        Its requests may wait or run elsewhere by then.
        """
        kept = self.scheduler.last_mbs
        for index, batch in enumerate(kept):
            if batch is not None and batch is last_batch:
                kept[index] = None


def pipeline_stages(scheduler: Any) -> PipelineStages:
    """How SGLang lays the model's layers on its stages."""
    num_layers, num_stages = scheduler.model_config.num_hidden_layers, serving.ranks_of(scheduler).pp_size
    ends = [get_pp_indices(num_layers, rank, num_stages)[1] for rank in range(num_stages)]
    return PipelineStages((0, *ends))


def _to_merge(last_batch: Any) -> ScheduleBatch | None:
    """What SGLang may merge into the running batch: a cohort that completed in the last tick."""
    if not isinstance(last_batch, PipelineTick):
        return last_batch
    done = last_batch.completed
    return last_batch.decode if done is None else done.batch
