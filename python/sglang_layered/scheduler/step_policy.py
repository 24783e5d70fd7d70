"""Lets a step policy decide: shows it the queue, the cohort and the clock, and does what it says.

Every rank decides for itself, from the clock and the step times of rank 0 (`rank_clock`).
"""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.core.capability import Capability, capabilities_of
from sglang_layered.core.choice import APART, StepShape
from sglang_layered.core.pacing import Decision, PaceView, Start, StepLoad, StepPolicy
from sglang_layered.errors import ConfigError
from sglang_layered.scheduler import stream
from sglang_layered.scheduler.asking import Asking
from sglang_layered.scheduler.base_loop import BaseLoop
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.calibration import CalibrationFile, start_of
from sglang_layered.scheduler.rank_clock import LastTokenTimes, RankClock, Reading
from sglang_layered.scheduler.results import StepLoads
from sglang_layered.upstream.receiver import ClockedReceiver
from sglang_layered.upstream.releases import serving
from sglang_layered.upstream.room import rows_per_request, running_soon
from sglang_layered.upstream.some_decode import Choose

logger = logging.getLogger(__name__)


class StepPolicyDriver:
    """The life of the step policy in force; calls what its capabilities name, and nothing else of it."""

    def __init__(
        self,
        loop: BaseLoop,
        expected: Callable[[StepShape], str | None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Drive the policy that `loop.controls` has in force.

        `expected` names the strategy that a step will run in. `failed` hears what a policy raised, and raises
        it again where the server must stop.
        """
        self.decision: Decision | None = None
        self.asking: Asking | None = None  # with a policy that answers questions
        self.choose_decodes: Choose | None = None  # with one that says who decodes
        self._scheduler, self._controls, self._stream = loop.scheduler, loop.controls, loop.stream
        self._loop = loop
        self._admission = loop.controls.admission
        self._sizes, self._layers = loop.sizes, loop.layers
        self._expected, self._failed = expected, failed
        self.loads = StepLoads(self._sizes, rows_per_request(self._scheduler))
        self.policy: StepPolicy | None = None  # in force
        self._can: frozenset[Capability] = frozenset()  # that policy
        self._begun: StepPolicy | None = None  # the last one that was told what it serves
        self._file: CalibrationFile | None = None
        self._clock = RankClock()
        self._now_s = 0.0
        self._learning: deque[tuple[StepLoad, str]] = deque()
        self._last_before = 0  # number of the last step that was launched before the policy came into force
        self._last_tokens = LastTokenTimes()
        self._was_planned = False  # the latest step's layers, by the policy
        self._has_other_ranks = serving.ranks_of(self._scheduler).tp_size > 1
        self._adopt(self._controls.step_policy, at_start=True)

    def handlers(self) -> stream.Handlers:
        """What it hears of the loop: with no policy that has a part in every step only of a new one."""
        hears: dict[type, Callable[[Any], None]] = {stream.SettingsChanged: self._settings_changed}
        if self.policy is not None:
            hears |= {stream.ResultsDue: self._results_are_due, stream.StepDone: self._results_are_in}
        return hears

    def step_begins(self) -> None:
        """Read the clock: the time, and what the steps since the last one took."""
        if self.policy is None:
            return
        try:
            self._read_clock(self.policy)
        except Exception as error:
            self._policy_failed(error)

    def shown(self) -> AbstractContextManager[None]:
        """Inside, SGLang sees the prompts that the policy lets it admit, in its order."""
        return nullcontext() if self.asking is None else self.asking.shown()

    def admitted(self, batch: ScheduleBatch) -> None:
        """SGLang has chosen a prompt batch."""
        if self.asking is not None:
            self.asking.admitted(batch)

    def rest(self) -> None:
        """Nothing runs."""
        if self.asking is not None:
            self.asking.rest()

    @property
    def orders(self) -> bool:
        """True with a policy that says who may be admitted."""
        return self.asking is not None and self.asking.orders

    def before_admission(self) -> None:
        """No cohort is in flight: order the queue and say how many tokens the next one may have."""
        policy, admission, most = self._pacing, self._admission, self._admission.most_tokens
        self.decision = None
        if policy is None or most is None:
            return
        admission.take_all()
        if not admission.somebody_waits():
            return
        running = running_soon(self._scheduler)
        view = admission.view(running, self._due_s(running), most)
        rows = view.decode_rows * self.loads.rows_per_request
        shape = StepShape(rows, min(sum(view.prompt_lens), most), self._sizes.num_layers)
        view = replace(view, decode_rows=rows, is_apart=self._expected(shape) in APART)
        try:
            if not self.orders:
                admission.order_by_deadline(policy, self._now_s, self._controls.config.slo_ttft_ms)
            admission.take(policy.cohort_tokens(view))
        except Exception as error:
            self._policy_failed(error)

    def pace(self, inflight: InFlightCohort, decode: ScheduleBatch | None) -> None:
        """A cohort is about to run beside these decodes: cut its next group. Beside none it runs whole."""
        policy, group = self._pacing, inflight.cohort.group
        self.decision = None
        if policy is None or decode is None:
            return
        rows = len(decode.reqs) * self.loads.rows_per_request
        shape = StepShape(rows, inflight.num_prompt_tokens, group.num_layers)
        load = self.loads.at_rest(decode, inflight.batch, self._expected(shape))
        try:
            decision = policy.next_layers(PaceView(load, group.start, self._due_s(decode.reqs)))
            inflight.cohort = inflight.cohort.with_next_layers(decision.layers)
        except Exception as error:
            self._policy_failed(error)
            return
        self.decision = decision
        self._stream.emit(stream.Paced(decision))

    def close(self) -> None:
        """The server ends: keep what was learned."""
        if self._file is None or self._begun is None:
            return
        try:
            self._file.keep(self._begun)
        except Exception:  # the server ends anyway, and others still have to close
            logger.exception("What the policy learned cannot be kept")

    def _choose_decodes(self, batch: ScheduleBatch) -> list[int] | None:
        keep = None if self.asking is None else self.asking.decoding(batch)
        if keep is not None:
            self.loads.count_anew()
        return keep

    @property
    def _pacing(self) -> StepPolicy | None:
        """The policy in force, if it decides in every step and was told what it serves."""
        is_ready = self.policy is self._begun and Capability.PACES_STEPS in self._can
        return self.policy if is_ready else None

    def _settings_changed(self, event: stream.SettingsChanged) -> None:
        self._adopt(self._controls.step_policy)
        if self.asking is not None:
            self.asking.use(event.config)
        self._stream.remove(self)
        self._stream.add(self, is_vital=True)

    def _results_are_due(self, event: stream.ResultsDue) -> None:
        self._last_tokens.collect(event.step.outcomes)

    def _results_are_in(self, event: stream.StepDone) -> None:
        if self.asking is not None:
            self.asking.processed(event.step.outcomes)
        if event.step.load is not None and event.step.number > self._last_before:
            self._learning.append((event.step.load, event.step.kind))
            self._clock.step_took(event.timing.duration_s)

    def _adopt(self, policy: StepPolicy | None, at_start: bool = False) -> None:
        """Follow the operator from one policy to another; rank 0 prepares what a new one starts from."""
        if policy is self.policy:
            return
        self.policy, self.decision = policy, None
        self._can = frozenset() if policy is None else capabilities_of(policy)
        # A step that is under way has a load where somebody listens, which may be rank 0 alone.
        self._learning.clear()
        self._last_before = self._scheduler.forward_ct
        self._last_tokens.forget()
        self.asking = asking = Asking.of(self._loop, policy, self._last_tokens, self._policy_failed)
        chooses = asking is not None and Capability.CHOOSES_DECODES in self._can
        self.choose_decodes = self._choose_decodes if chooses else None
        scheduler = self._scheduler
        if policy is None:
            self._admission.take_all()
            return
        self._clock = RankClock()
        self._clock.latest = Reading(self._now_s)  # until rank 0 is heard again
        if self._has_other_ranks:
            scheduler.request_receiver = ClockedReceiver.of(scheduler.request_receiver, self._clock)
        if serving.ranks_of(scheduler).tp_rank == 0 and policy is not self._begun:
            self._file = self._file_of(policy)
            self._clock.start = self._start_of(self._file, at_start)

    def _file_of(self, policy: StepPolicy) -> CalibrationFile | None:
        path = self._controls.config.layered_calibration_file
        if path is None or Capability.LEARNS not in self._can:
            return None
        return CalibrationFile.of(self._scheduler, self._sizes, path, policy)

    def _start_of(self, file: CalibrationFile | None, at_start: bool) -> Start:
        """A file that cannot be used is refused at start; later it must not end a server that serves."""
        try:
            return start_of(self._scheduler, file)
        except ConfigError as error:
            if at_start:
                raise
            logger.warning("The policy starts from nothing: %s", error)
            return start_of(self._scheduler, None)

    def _policy_failed(self, error: Exception) -> None:
        if isinstance(error, ConfigError):
            raise error
        self._failed(error)

    def _begin(self, policy: StepPolicy, start: Start) -> None:
        if self._can & {Capability.LEARNS, Capability.PACES_STEPS}:
            try:
                policy.begin(self._sizes, self._layers, start)
            except ValueError as error:
                if start.learned is None:
                    raise
                self._begin_from_nothing(policy, start, error)
        self._begun = policy

    def _begin_from_nothing(self, policy: StepPolicy, start: Start, error: ValueError) -> None:
        """What was learned is of another form: refused at start; a server that serves goes on without."""
        path = self._controls.config.layered_calibration_file
        message = f"--layered-calibration-file {path}: {error}; delete it"
        if self._begun is None:
            raise ConfigError(message) from error
        logger.warning("The policy starts from nothing: %s", message)
        policy.begin(self._sizes, self._layers, replace(start, learned=None))

    def _read_clock(self, policy: StepPolicy) -> None:
        reading = self._clock.read(has_other_ranks=self._has_other_ranks)
        self._now_s = reading.now_s
        if reading.start is not None:
            self._begin(policy, reading.start)
        for duration_s in reading.durations_s:
            self._learn(policy, *self._learning.popleft(), duration_s)
        gap_s = self._last_tokens.mark(self._now_s)
        if gap_s is not None and Capability.KEEPS_TBT_LIMIT in self._can:
            policy.observe_gap(gap_s, self._was_planned)
        self._was_planned = self.decision is not None
        if self._scheduler.waiting_queue:
            self._admission.note_arrivals(self._now_s)
        if self.asking is not None:
            self.asking.now_s = self._now_s

    def _learn(self, policy: StepPolicy, load: StepLoad, kind: str, duration_s: float) -> None:
        if Capability.LEARNS not in self._can:
            return
        predicted_s = policy.observe(load, duration_s)
        self._stream.emit(stream.Predicted(kind, predicted_s, duration_s))
        if self._file is not None:
            self._file.step_done(policy)

    def _due_s(self, reqs: list[Any]) -> float | None:
        """Seconds until the earliest next token is due that is not late already."""
        limit_ms = self._controls.config.slo_tbt_ms
        if limit_ms is None or Capability.KEEPS_TBT_LIMIT not in self._can:
            return None
        limit_s = limit_ms / 1e3
        token_s = self._last_tokens.oldest_after(reqs, self._now_s - limit_s)
        return limit_s if token_s is None else token_s + limit_s - self._now_s
