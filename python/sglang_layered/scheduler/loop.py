"""The event loop of layered mode: SGLang's own scheduling, with prompts run one layer group a step.

Invariant: `scheduler.last_batch` is the in-flight cohort's ScheduleBatch from admission until SGLang merges
it into the running batch. Aborts, idle checks, flushes, pool statistics and pauses then work as they are.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.utils import DynamicGradMode

from sglang_layered.config import LayeredConfig
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.events import DropReason
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.view import StepKind, StepTiming
from sglang_layered.errors import InvariantError
from sglang_layered.listeners.dispatch import find_listeners
from sglang_layered.models.layer_shapes import served_layer_shapes
from sglang_layered.runner.execution import Execution
from sglang_layered.runner.layered_runner import LayeredRunner
from sglang_layered.scheduler.batch import InFlightCohort, LayerGroupBatch
from sglang_layered.scheduler.cohorts import CohortKeeper
from sglang_layered.scheduler.control import Controls
from sglang_layered.scheduler.drop import filter_finished
from sglang_layered.scheduler.duties import ready_to_decode
from sglang_layered.scheduler.invariants import InvariantChecker
from sglang_layered.scheduler.launch import StepLauncher
from sglang_layered.scheduler.metrics import LoopMetrics
from sglang_layered.scheduler.observer import tell_observer
from sglang_layered.scheduler.pacing import Pacer
from sglang_layered.scheduler.planning import Planner, warn_of_dense
from sglang_layered.scheduler.rank_check import RankCheck
from sglang_layered.scheduler.report import Reporter, listener_specs
from sglang_layered.scheduler.results import LaunchedStep, Outcome, StepResults
from sglang_layered.scheduler.room import last_one_has_no_room, make_room_for_chunk
from sglang_layered.scheduler.running import num_running
from sglang_layered.scheduler.spans import trace_group
from sglang_layered.scheduler.timer import StepTimer

logger = logging.getLogger(__name__)


class LayeredLoop:
    """Runs one SGLang Scheduler in layered mode, with the overlap scheduler or without.

    Upstream: srt/managers/scheduler.py, `event_loop_overlap`, `event_loop_normal` and
    `get_next_batch_to_run`. The latter is called unchanged whenever no cohort is in flight.
    """

    def __init__(self, scheduler: Any, config: LayeredConfig) -> None:
        self.scheduler = scheduler
        runner = LayeredRunner(scheduler.tp_worker.model_runner)
        self.num_layers = runner.num_layers
        self.controls = Controls(scheduler, config, runner.num_layers)
        self.layers = served_layer_shapes(scheduler.model_config)
        self._planner = Planner(scheduler, self.controls, runner.num_layers, self.layers)
        self.last_timing: StepTiming | None = None
        self.results = StepResults(scheduler, self._process)
        self.report = Reporter(scheduler, find_listeners(listener_specs(scheduler, config)))
        self._metrics = LoopMetrics(scheduler, config)
        self.keeper = CohortKeeper(scheduler, runner.num_layers, self._heard_of_drop)
        self._execution = Execution.from_config(runner, config, scheduler.device)
        self._launcher = StepLauncher(scheduler, self._execution)
        failed = partial(self._leave_layered_mode, "policy failed")
        self.pacer = Pacer(scheduler, self.controls, self.layers, self._execution, self._metrics, failed)
        self._checker = InvariantChecker(scheduler, self.keeper.ledger, config.layered_check_invariants)
        self._single_rank = scheduler.ps.tp_size == 1
        self._ranks = RankCheck(scheduler, config.layered_check_invariants)
        self.controls.changed.append(self._mode_changed)

    @property
    def inflight(self) -> InFlightCohort | None:
        """The cohort in flight."""
        return self.keeper.inflight

    @classmethod
    def start(cls, scheduler: Any) -> None:
        """Attach a loop to the scheduler and run it until shutdown."""
        loop = cls(scheduler, LayeredConfig.from_server_args(scheduler.server_args))
        scheduler.layered_loop = loop
        logger.info("Layered prefill: %d layers, policy %s", loop.num_layers, loop.controls.policy_text)
        warn_of_dense(loop.layers)
        loop.report.started(loop.controls.policy_text, loop.controls.cohort_tokens, loop.pacer.sizes)
        try:
            loop.run()
        finally:
            loop.pacer.close()
            loop.report.close()

    @DynamicGradMode()
    def run(self) -> None:
        """Receive, schedule and step until the scheduler is told to exit."""
        scheduler = self.scheduler
        while not scheduler.gracefully_exit:
            scheduler.process_input_requests(scheduler.request_receiver.recv_requests())
            if not scheduler._engine_paused:
                self.step()

    def step(self) -> None:
        """Schedule and launch one engine step, and process the results that are due."""
        try:
            self.pacer.step_begins()
            batch = self._resume() if self.inflight is not None else self._schedule()
            self._ranks.compare(batch)
            if isinstance(batch, LayerGroupBatch):
                self._run_layered(batch)
            else:
                self._run_stock(batch)
            self._checker.after_step(self.inflight)
        except InvariantError as error:
            self._recover(error)

    def on_pause(self) -> None:
        """SGLang is about to retract every request: leave them all in the running batch, nothing pending."""
        scheduler = self.scheduler
        self.results.process_all()
        if self.inflight is not None:
            self.keeper.leave_to_pause()
        running, last = scheduler.running_batch, scheduler.last_batch
        if last is not None and last is not running and last.forward_mode.is_extend():
            running.reqs = [*running.reqs, *(req for req in last.reqs if req not in running.reqs)]
        scheduler.last_batch = None

    def _schedule(self) -> LayerGroupBatch | ScheduleBatch | None:
        """No cohort in flight: SGLang chooses; a prompt batch beside running requests becomes a cohort."""
        scheduler = self.scheduler
        self.pacer.before_admission()
        make_room_for_chunk(scheduler, self.results)
        filter_finished(scheduler)
        plan = scheduler.get_next_batch_to_run(
            running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
        )
        scheduler.running_batch = plan.running_batch
        batch = plan.batch_to_run
        if batch is None or not batch.forward_mode.is_extend():
            return batch
        if scheduler.is_disable_overlap_for_batch(batch, last_batch=scheduler.last_batch):
            self.results.process_all()
        if not self.controls.is_layered or num_running(self.scheduler) == 0:
            return batch
        groups = self._plan(batch)
        if groups is None:
            return batch
        inflight = self.keeper.admit(batch, groups)
        self._metrics.admitted(inflight)
        self.report.admitted(inflight)
        return self._compose()

    def _resume(self) -> LayerGroupBatch | ScheduleBatch | None:
        """A cohort is in flight: no admission, its next group beside the next decode."""
        scheduler, inflight = self.scheduler, self.inflight
        scheduler._abort_on_waiting_timeout()
        scheduler._abort_on_running_timeout(scheduler.running_batch)
        if scheduler.grammar_manager.has_waiting_grammars():
            for req in scheduler.grammar_manager.get_ready_grammar_requests():
                scheduler._add_request_to_queue(req)
        if inflight is not None:
            scheduler._abort_on_running_timeout(inflight.batch)
            self._let_aborted_leave(inflight)
        return self._compose()

    def _let_aborted_leave(self, inflight: InFlightCohort) -> None:
        """Nobody waits for aborted requests: they take no part in the next group and hold no slots."""
        if not inflight.aborted:
            return
        # A pending result may end requests too, and its forward may still write the slots that are freed.
        self.results.process_all()
        if len(inflight.aborted) == len(inflight.reqs):
            self._drop(DropReason.ABORTED)
        else:
            self.report.left(inflight.cohort, self.keeper.remove_aborted())

    def _compose(self) -> LayerGroupBatch | ScheduleBatch | None:
        self._checker.before_group(self.inflight)
        decode = self._decode_batch()
        if self.inflight is None:
            return decode
        if decode is None:
            self.inflight.cohort = self.inflight.cohort.with_rest_at_once()
        self.pacer.pace(self.inflight, decode)
        return LayerGroupBatch(decode, self.inflight)

    def _plan(self, batch: ScheduleBatch) -> LayerGroupPlan | None:
        """The policy's plan; None when the policy failed and prompts go whole from now on."""
        try:
            return self._planner.plan(batch, self.last_timing if self._single_rank else None)
        except Exception as error:
            self._leave_layered_mode("policy failed", error)
            return None

    def _decode_batch(self) -> ScheduleBatch | None:
        """The running batch made ready for its next token, or None; may drop the cohort to make room."""
        scheduler = self.scheduler
        if self.inflight is not None and last_one_has_no_room(scheduler.running_batch):
            self.results.process_all()
            if last_one_has_no_room(scheduler.running_batch):
                self._drop(DropReason.KV_POOL_FULL)
        if filter_finished(scheduler):
            return None
        scheduler.running_batch = running = scheduler.update_running_batch(scheduler.running_batch)
        return None if running.is_empty() else ready_to_decode(scheduler, running)

    def _run_stock(self, batch: ScheduleBatch | None) -> None:
        scheduler = self.scheduler
        scheduler.cur_batch_for_debug = batch
        if batch is None:
            if not self.results.process_all():
                scheduler.on_idle()
            scheduler.last_batch = None
            return
        kind: StepKind = "prefill" if batch.forward_mode.is_extend() else "decode"
        timer = StepTimer.start(scheduler)
        result = scheduler.run_batch(batch)
        timer.stop()
        if scheduler.enable_overlap:
            scheduler._apply_war_barrier()
        prompt = tuple(zip(batch.reqs, batch.extend_lens, strict=True)) if kind == "prefill" else ()
        outcomes = (Outcome(batch, self._seen(batch), result),)
        load = self.pacer.load_of(*((None, batch) if prompt else (batch, None)))
        self.results.launched(
            LaunchedStep(scheduler.forward_ct, kind, outcomes, timer, prompt=prompt, load=load)
        )
        scheduler.last_batch = batch

    def _run_layered(self, step: LayerGroupBatch) -> None:
        inflight, cohort = step.inflight, step.inflight.cohort
        self.scheduler.cur_batch_for_debug = inflight.batch
        strategy = self._execution.choose(step.shape)
        load = self.pacer.load_of(step.decode, inflight.batch, step.group, strategy)
        timer = StepTimer.start(self.scheduler)
        outcomes = tuple(
            Outcome(batch, self._seen(batch), result)
            for batch, result in self._launcher.launch(step, strategy)
        )
        timer.stop()
        self.keeper.advance()
        prompt = tuple(zip(inflight.reqs, inflight.batch.extend_lens, strict=True))
        number, decision = self.scheduler.forward_ct, self.pacer.decision
        self.results.launched(
            LaunchedStep(number, "layered", outcomes, timer, cohort, prompt, strategy, load, decision)
        )

    def _seen(self, batch: ScheduleBatch) -> ScheduleBatch:
        return batch.copy() if self.scheduler.enable_overlap else batch

    def _process(self, step: LaunchedStep) -> None:
        decoded = self.report.reqs_to_get_a_token(step)
        self.pacer.results_are_due(step)
        tell_observer(self.scheduler, step, self.num_layers)
        for outcome in step.outcomes:
            self.scheduler.process_batch_result(outcome.seen, outcome.result)
        num_layers = self.num_layers if step.cohort is None else step.cohort.group.num_layers
        self.last_timing = StepTiming(
            step.kind, step.timer.duration_s(), step.num_decode_rows, sum(step.prompt_rows), num_layers
        )
        self.pacer.results_are_in(step, self.last_timing.duration_s)
        self._metrics.stepped(self.last_timing, step.strategy)
        self._metrics.in_flight([] if self.inflight is None else [self.inflight])
        if step.cohort is not None:
            if step.cohort.is_last_group:
                self._metrics.finished(step.cohort)
            reqs = [req for req, _ in step.prompt]
            trace_group(reqs, step.cohort, step.timer.start_s, self.last_timing.duration_s, step.number)
        if step.strategy is not None:
            self._execution.observe(step.strategy, self.last_timing)
        self.report.step_done(step, self.last_timing, decoded)

    def _drop(self, reason: DropReason) -> None:
        self.results.process_all()
        self.keeper.drop(reason)

    def _heard_of_drop(self, cohort: Cohort, reason: DropReason) -> None:
        self._metrics.dropped(reason)
        self._metrics.in_flight([])
        self.report.dropped(cohort, reason)

    def _recover(self, error: InvariantError) -> None:
        """A broken invariant in production: the cohort starts again, and prompts go on chunk by chunk."""
        self._leave_layered_mode(DropReason.BROKEN_INVARIANT, error)
        self.keeper.reset_ledger()
        if self.inflight is not None:
            self._drop(DropReason.BROKEN_INVARIANT)

    def _leave_layered_mode(self, reason: str, error: Exception) -> None:
        """Go on in chunked mode and say so; stop instead when strict, or when other ranks may not follow."""
        if self._checker.is_strict or not self._single_rank:
            raise error
        logger.error("Layered prefill is off: %s; prompts go chunk by chunk", reason, exc_info=error)
        self.controls.go_on_chunked(reason)

    def _mode_changed(self, reason: str) -> None:
        config = self.controls.config
        self._metrics.mode_changed(config, reason)
        self.report.mode_changed(config.prefill_mode, reason)
