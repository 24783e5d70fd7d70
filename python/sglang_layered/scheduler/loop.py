"""The event loop of layered mode: SGLang's own scheduling, with prompts run one layer group a step.

Invariant: `scheduler.last_batch` is the in-flight cohort's ScheduleBatch from admission until SGLang merges
it into the running batch. Aborts, idle checks, flushes, pool statistics and pauses then work as they are.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.utils import DynamicGradMode

from sglang_layered.config import LayeredConfig
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.ledger import GroupKVLedger
from sglang_layered.runner.layered_runner import LayeredRunner
from sglang_layered.scheduler.batch import InFlightCohort, LayerGroupBatch
from sglang_layered.scheduler.drop import abort_requests, requeue_requests
from sglang_layered.scheduler.invariants import InvariantChecker
from sglang_layered.scheduler.launch import StepLauncher
from sglang_layered.scheduler.step_log import StepLog

logger = logging.getLogger(__name__)


class LayeredLoop:
    """Runs one SGLang Scheduler in layered mode.

    Upstream: srt/managers/scheduler.py, `event_loop_normal` and `get_next_batch_to_run`. The latter is called
    unchanged whenever no cohort is in flight.
    """

    def __init__(self, scheduler: Any, config: LayeredConfig) -> None:
        self.scheduler = scheduler
        runner = LayeredRunner(scheduler.tp_worker.model_runner)
        config.check_depth(runner.num_layers)
        self.policy = config.make_policy()
        self.num_layers = runner.num_layers
        self.ledger = GroupKVLedger(runner.num_layers)
        self.inflight: InFlightCohort | None = None
        self._launcher = StepLauncher(scheduler, runner)
        self._checker = InvariantChecker(scheduler, self.ledger) if config.layered_check_invariants else None
        self._log = StepLog(Path(config.layered_step_log)) if config.layered_step_log else None

    @classmethod
    def start(cls, scheduler: Any) -> None:
        """Attach a loop to the scheduler and run it until shutdown."""
        config = LayeredConfig.from_server_args(scheduler.server_args)
        if scheduler.enable_overlap:
            raise AssertionError("layered mode was started with the overlap scheduler on")
        loop = cls(scheduler, config)
        scheduler.layered_loop = loop
        logger.info("Layered prefill: %d layers, policy %s", loop.num_layers, loop.policy)
        loop.run()

    @DynamicGradMode()
    def run(self) -> None:
        """Receive, schedule and step until the scheduler is told to exit."""
        scheduler = self.scheduler
        while not scheduler.gracefully_exit:
            scheduler.process_input_requests(scheduler.request_receiver.recv_requests())
            if not scheduler._engine_paused:
                self.step()

    def step(self) -> None:
        """Schedule and run one engine step."""
        batch = self._resume() if self.inflight is not None else self._schedule()
        if isinstance(batch, LayerGroupBatch):
            self._run_layered(batch)
        else:
            self._run_stock(batch)
        if self._checker is not None:
            self._checker.check(self.inflight)

    def on_pause(self) -> None:
        """SGLang is about to retract every request, the cohort's among them."""
        if self.inflight is not None:
            self._forget("paused")

    def _schedule(self) -> LayerGroupBatch | ScheduleBatch | None:
        """No cohort in flight: SGLang chooses; a prompt batch becomes a cohort."""
        scheduler = self.scheduler
        plan = scheduler.get_next_batch_to_run(
            running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
        )
        scheduler.running_batch = plan.running_batch
        batch = plan.batch_to_run
        if batch is None or not batch.forward_mode.is_extend():
            return batch
        self._admit(batch)
        return self._compose()

    def _resume(self) -> LayerGroupBatch | ScheduleBatch | None:
        """A cohort is in flight: no admission, its next group beside the next decode."""
        scheduler = self.scheduler
        scheduler._abort_on_waiting_timeout()
        scheduler._abort_on_running_timeout(scheduler.running_batch)
        if self.inflight is not None and all(req.to_finish is not None for req in self.inflight.reqs):
            self._drop("aborted")
        return self._compose()

    def _compose(self) -> LayerGroupBatch | ScheduleBatch | None:
        decode = self._decode_batch()
        return decode if self.inflight is None else LayerGroupBatch(decode, self.inflight)

    def _admit(self, batch: ScheduleBatch) -> None:
        plan = self.policy.plan(prompt_tokens=batch.extend_num_tokens, num_layers=self.num_layers)
        cohort = Cohort(plan, tuple(req.rid for req in batch.reqs))
        slots = batch.out_cache_loc.split(list(batch.extend_lens))
        for request_id, part in zip(cohort.request_ids, slots, strict=True):
            self.ledger.admit(request_id, part)
        self.inflight = InFlightCohort(cohort, batch)
        self.scheduler.last_batch = batch

    def _decode_batch(self) -> ScheduleBatch | None:
        """The running batch made ready for its next token, or None; may drop the cohort to make room."""
        scheduler = self.scheduler
        running = scheduler.running_batch
        if running.is_empty() or running.is_prefill_only:
            return None
        running.filter_batch()
        if self.inflight is not None and len(running.reqs) == 1 and not running.check_decode_mem():
            self._drop("KV pool full")
        scheduler.running_batch = running = scheduler.update_running_batch(running)
        return None if running.is_empty() else running

    def _run_stock(self, batch: ScheduleBatch | None) -> None:
        scheduler = self.scheduler
        scheduler.cur_batch_for_debug = batch
        if batch is None:
            scheduler.on_idle()
        else:
            result = scheduler.run_batch(batch)
            scheduler.process_batch_result(batch, result)
            if self._log is not None:
                self._log.stock(scheduler.forward_ct, "decode", batch.reqs)
        scheduler.last_batch = batch

    def _run_layered(self, batch: LayerGroupBatch) -> None:
        inflight = batch.inflight
        self.scheduler.cur_batch_for_debug = inflight.batch
        decode_result, cohort_result = self._launcher.launch(batch)
        self.ledger.group_done(inflight.cohort.request_ids, batch.group)
        if cohort_result is not None:
            self.ledger.complete(inflight.cohort.request_ids)
            self.inflight = None
        if batch.decode is not None:
            self.scheduler.process_batch_result(batch.decode, decode_result)
        if cohort_result is not None:
            self.scheduler.process_batch_result(inflight.batch, cohort_result)
        self.scheduler.maybe_send_health_check_signal()
        if self._log is not None:
            self._log.layered(self.scheduler.forward_ct, batch, batch.decode.reqs if batch.decode else [])
        inflight.cohort = inflight.cohort.advance()

    def _drop(self, reason: str) -> None:
        """Give the cohort's slots back; its aborted requests end, the others wait again."""
        inflight = self._forget(reason)
        aborted = [req for req in inflight.reqs if req.to_finish is not None]
        abort_requests(self.scheduler, aborted)
        requeue_requests(self.scheduler, [req for req in inflight.reqs if req not in aborted])
        self.scheduler.last_batch = None

    def _forget(self, reason: str) -> InFlightCohort:
        inflight = self.inflight
        if inflight is None:
            raise AssertionError("no cohort is in flight")
        cohort = inflight.cohort
        logger.info(
            "Cohort of %d requests dropped at group %d of %d: %s",
            len(cohort.request_ids),
            cohort.next_group,
            cohort.plan.num_groups,
            reason,
        )
        self.ledger.drop(cohort.request_ids)
        self.inflight = None
        return inflight
