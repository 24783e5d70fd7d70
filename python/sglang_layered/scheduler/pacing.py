"""Lets a step policy decide: shows it the queue, the cohort and the clock, and does what it says.

Every rank decides for itself, from the clock and the step times of rank 0 (`news`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.core.capability import Capability, capabilities_of
from sglang_layered.core.choice import StepShape, runs_apart
from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.pacing import (
    Decision,
    ModelSizes,
    PaceView,
    QueueView,
    Start,
    StepLoad,
    StepPolicy,
)
from sglang_layered.core.plan import LayerGroup
from sglang_layered.errors import ConfigError
from sglang_layered.runner.execution import Execution
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.calibration import CalibrationFile, start_of
from sglang_layered.scheduler.control import Controls
from sglang_layered.scheduler.heard import Heard
from sglang_layered.scheduler.metrics import LoopMetrics
from sglang_layered.scheduler.news import NewsDesk, NewsReceiver
from sglang_layered.scheduler.results import LaunchedStep
from sglang_layered.scheduler.running import running_soon
from sglang_layered.scheduler.waiting import order_by_deadline, waiting_tokens

logger = logging.getLogger(__name__)

STEPS_PER_COUNT = 8


class Pacer:
    """The scheduler's side of a `StepPolicy`: calls what its capabilities name, and nothing else of it."""

    def __init__(
        self,
        scheduler: Any,
        controls: Controls,
        layers: tuple[LayerShape, ...],
        execution: Execution,
        metrics: LoopMetrics,
        failed: Callable[[Exception], None],
    ) -> None:
        """`failed` hears what a policy raised, and raises it again where the server must stop."""
        self.decision: Decision | None = None
        self._scheduler, self._controls, self._metrics = scheduler, controls, metrics
        self._failed, self._expected = failed, execution.expected
        self.sizes = ModelSizes.of(controls.num_layers, layers, _is_padded(scheduler))
        self._layers = layers
        self._policy: StepPolicy | None = None  # in force
        self._can: frozenset[Capability] = frozenset()  # that policy
        self._begun: StepPolicy | None = None  # the last one that was told what it serves
        self._file: CalibrationFile | None = None
        self._desk = NewsDesk()
        self._now_s = 0.0
        self._learning: deque[tuple[StepLoad, str]] = deque()
        self._heard = Heard()
        self._context = (0, 0, 0)  # decode rows, tokens that they see, steps since these were counted
        self._asked: tuple[ScheduleBatch, ScheduleBatch, StepLoad] | None = None  # of the step that is paced
        self._paced = False
        self._has_other_ranks = scheduler.ps.tp_size > 1
        self._set_up(at_start=True)

    @property
    def _pacing(self) -> StepPolicy | None:
        """The policy in force, if it decides in every step and was told what it serves."""
        is_ready = self._policy is self._begun and Capability.PACES_STEPS in self._can
        return self._policy if is_ready else None

    def step_begins(self) -> None:
        """Take the news: the time, and what the steps since the last one took."""
        self._set_up()
        if self._policy is not None:
            try:
                self._take_news(self._policy)
            except Exception as error:
                self._policy_failed(error)

    def before_admission(self) -> None:
        """No cohort is in flight: order the queue and say how many tokens the next one may have."""
        policy, scheduler, most = self._pacing, self._scheduler, self._controls.cohort_tokens
        self.decision = None
        if policy is None or most is None:
            return
        scheduler.chunked_prefill_size = most
        if not scheduler.waiting_queue and scheduler.chunked_req is None:
            return
        running, page = running_soon(scheduler), scheduler.page_size
        lens, prefixes = waiting_tokens(scheduler, most)
        shape = StepShape(len(running), min(sum(lens), most), self.sizes.num_layers)
        view = QueueView(
            lens,
            prefixes,
            len(running),
            _tokens(running),
            self._due_s(running),
            most,
            runs_apart(self._expected(shape)),
        )
        try:
            order_by_deadline(scheduler, policy, self._now_s, self._controls.config.slo_ttft_ms)
            wanted = policy.cohort_tokens(view)
            scheduler.chunked_prefill_size = min(max(wanted - wanted % page, page), most)
        except Exception as error:
            self._policy_failed(error)

    def pace(self, inflight: InFlightCohort, decode: ScheduleBatch | None) -> None:
        """A cohort is about to run beside these decodes: cut its next group. Beside none it runs whole."""
        policy, group = self._pacing, inflight.cohort.group
        self.decision = None
        if policy is None or decode is None:
            return
        shape = StepShape(len(decode.reqs), inflight.num_prompt_tokens, group.num_layers)
        at_rest = LayerGroup(group.start, group.start)
        load = self.load_of(decode, inflight.batch, at_rest, self._expected(shape))
        self._asked = (inflight.batch, decode, load)
        view = PaceView(load, group.start, self._due_s(decode.reqs))
        try:
            decision = policy.next_layers(view)
            inflight.cohort = inflight.cohort.with_next_layers(decision.layers)
            self.decision = decision
            self._metrics.paced(decision)
        except Exception as error:
            self._policy_failed(error)

    def load_of(
        self,
        decode: ScheduleBatch | None,
        prompt: ScheduleBatch | None,
        group: LayerGroup | None = None,
        strategy: str | None = None,
    ) -> StepLoad:
        """What a step with these batches runs in that strategy; without a group the prompt in all layers."""
        asked, is_apart = self._asked, decode is not None and runs_apart(strategy)
        if group is not None and asked is not None and asked[0] is prompt and asked[1] is decode:
            self._asked = None
            weight = self.sizes.weight(group.start, group.end)
            return replace(asked[2], prompt_layers=weight, is_apart=is_apart)
        rows, tokens = 0, 0
        if decode is not None:
            rows = len(decode.reqs)
            tokens = self._context_tokens(decode, rows)
        if prompt is None:
            return StepLoad(rows, tokens)
        lens, prefixes = tuple(prompt.extend_lens), tuple(prompt.prefix_lens)
        start, end = (group.start, group.end) if group else (0, self.sizes.num_layers)
        weight = self.sizes.weight(start, end)
        return StepLoad(rows, tokens, lens, prefixes, weight, is_apart)

    def _context_tokens(self, decode: ScheduleBatch, rows: int) -> int:
        """Tokens that the decodes see: a row's grow by one a step, so they are counted only now and then."""
        known_rows, tokens, age = self._context
        if rows == known_rows and age < STEPS_PER_COUNT:
            self._context = (rows, tokens + rows, age + 1)
        else:
            self._context = (rows, _context(decode), 0)
        return self._context[1]

    def results_are_due(self, step: LaunchedStep) -> None:
        """SGLang is about to process the results: note whose tokens they are."""
        if self._policy is not None:
            self._heard.results_are_due(step.outcomes)

    def results_are_in(self, step: LaunchedStep, duration_s: float) -> None:
        """A step's results were processed."""
        if self._policy is None or step.load is None:
            return
        self._learning.append((step.load, step.kind))
        self._desk.step_took(duration_s)

    def close(self) -> None:
        """The server ends: keep what was learned."""
        if self._file is None or self._begun is None:
            return
        try:
            self._file.keep(self._begun)
        except Exception:  # the server ends anyway, and others still have to close
            logger.exception("What the policy learned cannot be kept")

    def _set_up(self, at_start: bool = False) -> None:
        """Follow the operator from one policy to another; rank 0 prepares what a new one starts from."""
        policy = self._controls.step_policy
        if policy is self._policy:
            return
        self._policy, self.decision = policy, None
        self._can = frozenset() if policy is None else capabilities_of(policy)
        self._learning.clear()
        self._heard.forget()
        scheduler = self._scheduler
        if policy is None:
            scheduler.chunked_prefill_size = self._controls.cohort_tokens
            return
        self._desk = NewsDesk()
        if self._has_other_ranks:
            scheduler.request_receiver = NewsReceiver.of(scheduler.request_receiver, self._desk)
        if scheduler.ps.tp_rank == 0 and policy is not self._begun:
            self._file = self._file_of(policy)
            self._desk.start = self._start_of(self._file, at_start)

    def _file_of(self, policy: StepPolicy) -> CalibrationFile | None:
        path = self._controls.config.layered_calibration_file
        if path is None or Capability.LEARNS not in self._can:
            return None
        return CalibrationFile.of(self._scheduler, self.sizes, path, policy)

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
                policy.begin(self.sizes, self._layers, start)
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
        policy.begin(self.sizes, self._layers, replace(start, learned=None))

    def _take_news(self, policy: StepPolicy) -> None:
        news = self._desk.take(has_other_ranks=self._has_other_ranks)
        self._now_s = news.now_s
        if news.start is not None:
            self._begin(policy, news.start)
        for duration_s in news.durations_s:
            self._learn(policy, *self._learning.popleft(), duration_s)
        gap_s = self._heard.at(self._now_s)
        if gap_s is not None and Capability.KEEPS_TBT_LIMIT in self._can:
            policy.spaced(gap_s, self._paced)
        self._paced = self.decision is not None
        for req in reversed(self._scheduler.waiting_queue):  # the youngest come last
            if hasattr(req, "layered_arrived_s"):
                break
            req.layered_arrived_s = self._now_s

    def _learn(self, policy: StepPolicy, load: StepLoad, kind: str, duration_s: float) -> None:
        if Capability.LEARNS not in self._can:
            return
        predicted_s = policy.observe(load, duration_s)
        self._metrics.predicted(kind, predicted_s, duration_s)
        if self._file is not None:
            self._file.step_done(policy)

    def _due_s(self, reqs: list[Any]) -> float | None:
        """Seconds until the earliest next token is due that is not late already."""
        limit_ms = self._controls.config.slo_tbt_ms
        if limit_ms is None or Capability.KEEPS_TBT_LIMIT not in self._can:
            return None
        limit_s = limit_ms / 1e3
        heard_s = self._heard.first_s(reqs, self._now_s - limit_s)
        return limit_s if heard_s is None else heard_s + limit_s - self._now_s


def _context(batch: ScheduleBatch) -> int:
    lens = batch.seq_lens_cpu
    return _tokens(batch.reqs) if lens is None else int(lens.sum())


def _tokens(reqs: list[Any]) -> int:
    return sum(req.seqlen for req in reqs)


def _is_padded(scheduler: Any) -> bool:
    """SGLang's torch attention computes rows for cached tokens too."""
    return bool(scheduler.server_args.attention_backend == "torch_native")
