"""The event loop of layered mode: SGLang's own scheduling, with prompts run one layer group a step.

Invariant: `scheduler.last_batch` is the in-flight cohort's ScheduleBatch from admission until SGLang merges
it into the running batch. Aborts, idle checks, flushes, pool statistics and pauses then work as they are.
"""

import logging

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.utils import DynamicGradMode

from sglang_layered.config import LayeredConfig
from sglang_layered.core.events import DropReason
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.core.view import StepTiming
from sglang_layered.errors import InvariantError
from sglang_layered.runner.at_start import take_runner
from sglang_layered.runner.execution import ENCODER, Execution
from sglang_layered.runner.layered_runner import LayeredRunner
from sglang_layered.scheduler.base_loop import BaseLoop
from sglang_layered.scheduler.batch import InFlightCohort, LayerGroupBatch
from sglang_layered.scheduler.invariants import RankCheck
from sglang_layered.scheduler.overtaking import Overtaking
from sglang_layered.scheduler.results import LaunchedStep, Outcome, StepResults, StepTimer
from sglang_layered.scheduler.step_policy import StepPolicyDriver
from sglang_layered.scheduler.stream import Overtaken, StepDone
from sglang_layered.upstream.images import unseen_images
from sglang_layered.upstream.launch import is_paused, ready_to_decode, run_stock
from sglang_layered.upstream.releases import serving
from sglang_layered.upstream.room import filter_finished, leave_all_running, preempted_wait, somebody_decodes
from sglang_layered.upstream.some_decode import update_and_choose
from sglang_layered.upstream.speculation import make_launcher, must_settle, speculates

logger = logging.getLogger(__name__)


class LayeredLoop(BaseLoop):
    """Runs one SGLang Scheduler without pipeline stages, with the overlap scheduler or without.

    Upstream: `event_loop_overlap`, `event_loop_normal`; `get_next_batch_to_run`, called with none in flight.
    """

    def prepare(self, config: LayeredConfig) -> PipelineStages:
        """All layers are on one stage."""
        scheduler = self.scheduler
        runner = take_runner(scheduler.tp_worker.model_runner, LayeredRunner)
        self.last_timing: StepTiming | None = None
        self.results = StepResults(scheduler, self.process)
        self._execution = Execution.from_config(runner, config, scheduler.device, speculates(scheduler))
        self._launcher = make_launcher(scheduler, self._execution)
        self._single_rank, self._num_layers = serving.ranks_of(scheduler).tp_size == 1, runner.num_layers
        self._ranks = RankCheck(scheduler, config.layered_check_invariants)
        return PipelineStages((0, runner.num_layers))

    def subscribe(self, config: LayeredConfig) -> None:
        """The step policy hears first, and what it raises is not passed over."""
        self.driver = StepPolicyDriver(self, self._execution.expected, self._policy_failed)
        self.stream.add(self.driver, is_vital=True)
        super().subscribe(config)
        self._overtaking = Overtaking(self.scheduler, self.cohorts, config)
        self.stream.add(self._overtaking, is_vital=True)

    @property
    def inflight(self) -> InFlightCohort | None:
        """The cohort in flight that runs."""
        return self.cohorts.newest

    @DynamicGradMode()
    def run(self) -> None:
        """Receive, schedule and step until the scheduler is told to exit."""
        scheduler = self.scheduler
        while not scheduler.gracefully_exit:
            try:
                serving.take_in(scheduler)
                if not is_paused(scheduler):
                    self._step()
            except InvariantError as error:
                self._recover(error)

    def step(self) -> None:
        """One engine step, for whoever steps the loop by hand."""
        try:
            self._step()
        except InvariantError as error:
            self._recover(error)

    def close(self) -> None:
        """The server ends: keep what the policy has learned."""
        self.driver.close()
        super().close()

    def settle(self) -> None:
        """Process results that are pending: their forwards may end requests, and still write slots."""
        self.results.process_all()

    def on_pause(self) -> None:
        """SGLang is about to retract every request: no cohort is in flight then, and nothing pending.

        It would queue an aborted request of a cohort again, and save a streaming session's half-filled KV.
        """
        self.drop(DropReason.PAUSED)
        leave_all_running(self.scheduler)

    def drop(self, reason: DropReason) -> None:
        """SGLang would merge the last batch, so a cohort that was dropped is that no longer."""
        was_in_flight = bool(self.cohorts.inflight)
        super().drop(reason)
        if was_in_flight:
            self._overtaking.note_last()

    def process(self, step: LaunchedStep) -> None:
        """A step's results are to be processed now."""
        self.hand_over(step)
        if step.finished is not None or step.kind == "prefill":
            self.cohorts.wait_for_loads()
        timing = self.last_timing = step.timing(self._num_layers, self.driver.loads.rows_per_request)
        if step.strategy is not None and self._execution.choice.learns:
            self._execution.observe(step.strategy, timing)
        self.stream.emit(StepDone(step, timing))

    def _step(self) -> None:
        """Schedule and launch one engine step, and process the results that are due."""
        if self.driver.policy is not None:
            self.driver.step_begins()
        batch = self._resume() if self.cohorts.inflight else self._schedule()
        if self._ranks.is_on:
            self._ranks.compare(batch)
        if self._launcher.may_settle and must_settle(self.scheduler, batch):
            self.settle()
        if isinstance(batch, LayerGroupBatch):
            self._run_layered(batch)
        else:
            self._run_stock(batch)
        if self._checker.is_on:
            self._checker.between_steps()

    def _schedule(self) -> LayerGroupBatch | ScheduleBatch | None:
        """No cohort in flight: SGLang chooses; a prompt batch beside running requests becomes a cohort."""
        scheduler = self.scheduler
        with self.driver.shown():
            self.driver.before_admission()
            self.make_room_for_chunk()
            self.look_at_queue_again()
            filter_finished(scheduler)
            waiting = self._overtaking.one_kind_waits(self.driver.orders)
            with waiting, preempted_wait(scheduler, scheduler.running_batch):
                plan = scheduler.get_next_batch_to_run(scheduler.running_batch, scheduler.last_batch)
        scheduler.running_batch, batch = plan.running_batch, plan.batch_to_run
        if batch is None or not batch.forward_mode.is_extend():
            return batch
        self.driver.admitted(batch)
        if scheduler.is_disable_overlap_for_batch(batch, last_batch=scheduler.last_batch):
            self.settle()
        may_wait = somebody_decodes(scheduler) or self._overtaking.is_long(batch)
        if not self.controls.is_layered or not may_wait:
            return batch
        groups = self._groups_of(batch)
        if groups is None:
            return batch
        self.admit(batch, groups)
        scheduler.last_batch = batch
        [inflight] = self.cohorts.inflight
        inflight.to_encode = unseen_images(batch, self.controls.config.layered_group_tokens)
        self._let_overtake()
        return self._compose()

    def _resume(self) -> LayerGroupBatch | ScheduleBatch | None:
        """A cohort is in flight: no admission, its next group beside the next decode."""
        scheduler, overtaking, inflight = self.scheduler, self._overtaking, self.cohorts.inflight
        if overtaking.is_on:
            overtaking.step_begins()
        serving.tend_requests(scheduler, scheduler.last_batch)
        if (overtaking.is_on or inflight[0].aborted) and self.cohorts.leaving:
            self.settle()
            self.cohorts.let_aborted_leave()
            overtaking.note_last()
        if overtaking.is_on and inflight:
            self._let_overtake()
        return self._compose()

    def _let_overtake(self) -> None:
        """At a group's edge short prompts that wait may become a cohort that runs first."""
        may = self._overtaking.is_on and self.controls.is_layered
        batch = self._overtaking.short_ones(self.driver.asking) if may else None
        if batch is None:
            return
        plan = self._groups_of(batch) or LayerGroupPlan.whole(self._num_layers)
        self.stream.emit(Overtaken(self.cohorts.inflight[-1]))
        self.admit(batch, plan)
        self._overtaking.note_last()

    def _compose(self) -> LayerGroupBatch | ScheduleBatch | None:
        decode = self._decode_batch()
        if not self.cohorts.inflight:
            return decode
        *parked, inflight = self.cohorts.inflight
        if decode is None:
            if not self._overtaking.is_on:
                self.cohorts.finish_in_one_step()
            inflight.to_encode.clear()
        encodes = bool(inflight.to_encode)
        if self.driver.policy is not None and not encodes:
            self.driver.pace(inflight, decode)
        waits = tuple(item.batch for item in parked) if parked else ()
        return LayerGroupBatch(decode, inflight, inflight.cohort.group, encodes, waits)

    def _groups_of(self, batch: ScheduleBatch) -> LayerGroupPlan | None:
        """The policy's plan; None when the policy failed and prompts go whole from now on."""
        try:
            return self.plan(batch, self.last_timing if self._single_rank else None)
        except Exception as error:
            self._policy_failed(error)
            return None

    def _decode_batch(self) -> ScheduleBatch | None:
        """The running batch made ready for its next token, or None; may drop the cohort to make room."""
        scheduler = self.scheduler
        self.make_room(scheduler.running_batch)
        if filter_finished(scheduler):
            return None
        if self.driver.choose_decodes is not None and self.cohorts.inflight:
            decode = update_and_choose(scheduler, self.driver.choose_decodes)
        else:
            decode = scheduler.update_running_batch(scheduler.running_batch)
        return None if decode is None or decode.is_empty() else ready_to_decode(scheduler, decode)

    def _run_stock(self, batch: ScheduleBatch | None) -> None:
        scheduler = self.scheduler
        scheduler.cur_batch_for_debug = batch
        if batch is None:
            serving.note_idle(scheduler)
            if not self.results.process_all():
                scheduler.on_idle()
                self.driver.rest()
            scheduler.last_batch = None
            return
        timer, loads = StepTimer.start(scheduler), self.driver.loads
        result = run_stock(scheduler, batch)
        timer.stop()
        load = None
        if self.driver.policy is not None or self.is_heard:
            load = loads.of_prompt(batch) if batch.forward_mode.is_extend() else loads.of_decode(batch)
        outcomes = (Outcome(batch, self._at_launch(batch), result),)
        self.results.launched(LaunchedStep.stock(scheduler.forward_ct, batch, timer, outcomes, load))
        scheduler.last_batch = batch

    def _run_layered(self, step: LayerGroupBatch) -> None:
        inflight, cohort, decode = step.inflight, step.inflight.cohort, step.decode
        self.scheduler.cur_batch_for_debug = inflight.batch
        if step.encodes:
            self._run_encoder(step)
            return
        load, rows = None, self.driver.loads.rows_per_request
        strategy = None if decode is None else self._execution.choose(step.shape(rows))
        if self.driver.policy is not None or self.is_heard:
            load = self.driver.loads.of_group(decode, inflight.batch, step.group, strategy)
        timer = StepTimer.start(self.scheduler)
        outcomes = tuple(
            Outcome(batch, self._at_launch(batch), result)
            for batch, result in self._launcher.launch(step, strategy)
        )
        timer.stop()
        self.cohorts.advance(inflight)
        prompt = tuple(zip(inflight.reqs, inflight.batch.extend_lens, strict=True))
        number, decision = self.scheduler.forward_ct, self.driver.decision
        finished = cohort if cohort.is_last_group else None
        if finished is not None and self.cohorts.inflight:
            self._overtaking.completed(inflight.batch)
        what = (outcomes, timer, cohort, prompt, strategy, load, decision, finished)
        self.results.launched(LaunchedStep(number, "layered", *what))

    def _run_encoder(self, step: LayerGroupBatch) -> None:
        """Decode beside the encoder; the step-time model knows nothing of encoders, so it is told nothing."""
        timer = StepTimer.start(self.scheduler)
        [(decode, result)] = self._launcher.launch(step, ENCODER)
        timer.stop()
        step.inflight.to_encode.popleft()
        outcomes = (Outcome(decode, self._at_launch(decode), result),)
        self.results.launched(LaunchedStep(self.scheduler.forward_ct, "encoder", outcomes, timer))

    def _at_launch(self, batch: ScheduleBatch) -> ScheduleBatch:
        """The batch as it is at its launch: SGLang's own is changed before its results are processed."""
        return batch.copy() if self.scheduler.enable_overlap else batch

    def _recover(self, error: InvariantError) -> None:
        """A broken invariant in production: the cohort starts again, and prompts go on chunk by chunk."""
        self._leave_layered_mode(DropReason.BROKEN_INVARIANT, error)
        self.drop(DropReason.BROKEN_INVARIANT)

    def _policy_failed(self, error: Exception) -> None:
        self._leave_layered_mode("policy failed", error)

    def _leave_layered_mode(self, reason: str, error: Exception) -> None:
        """Go on in chunked mode and say so; stop instead when strict, or when other ranks may not follow."""
        if self._checker.is_strict or not self._single_rank:
            raise error
        logger.error("Layered prefill is off: %s; prompts go chunk by chunk", reason, exc_info=error)
        self.controls.go_on_chunked(reason)
