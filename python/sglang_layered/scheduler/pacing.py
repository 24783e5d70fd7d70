"""Lets a step policy decide: shows it the queue, the cohort and the clock, and does what it says.

Every rank decides for itself, from the clock and the step times of rank 0 (`news`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.auto.deadlines import WaitingPrompt, order_by_slack
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
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.calibration import CalibrationFile, start_of
from sglang_layered.scheduler.control import Controls
from sglang_layered.scheduler.heard import Heard
from sglang_layered.scheduler.metrics import LoopMetrics
from sglang_layered.scheduler.news import NewsDesk, NewsReceiver
from sglang_layered.scheduler.results import LaunchedStep
from sglang_layered.scheduler.running import running_soon

STEPS_PER_COUNT = 8


class Pacer:
    """The scheduler's side of a `StepPolicy`; with any other policy it only remembers what time it is."""

    def __init__(
        self,
        scheduler: Any,
        controls: Controls,
        num_layers: int,
        layers: tuple[LayerShape, ...],
        metrics: LoopMetrics,
        failed: Callable[[Exception], None],
    ) -> None:
        """`failed` hears what a policy raised, and raises it again where the server must stop."""
        self.decision: Decision | None = None
        self._scheduler, self._controls, self._metrics = scheduler, controls, metrics
        self._failed = failed
        self.sizes = ModelSizes.of(num_layers, layers, _is_padded(scheduler))
        self._is_apart = controls.config.layered_execution in ("sequential", "concurrent")
        self._layers = layers
        self._policy: StepPolicy | None = None  # in force
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
        self._set_up()

    @property
    def _active(self) -> StepPolicy | None:
        return self._policy if self._policy is self._begun else None

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
        policy, scheduler, most = self._active, self._scheduler, self._controls.cohort_tokens
        self.decision = None
        if policy is None or most is None:
            return
        scheduler.chunked_prefill_size = most
        if not scheduler.waiting_queue and scheduler.chunked_req is None:
            return
        running, page = running_soon(scheduler), scheduler.page_size
        lens, prefixes = self._waiting(most)
        view = QueueView(lens, prefixes, len(running), _tokens(running), self._due_s(running), most)
        try:
            self._order_queue(policy)
            wanted = policy.cohort_tokens(view)
            scheduler.chunked_prefill_size = min(max(wanted - wanted % page, page), most)
        except Exception as error:
            self._policy_failed(error)

    def pace(self, inflight: InFlightCohort, decode: ScheduleBatch | None) -> None:
        """A cohort is about to run beside these decodes: cut its next group. Beside none it runs whole."""
        policy, start = self._active, inflight.cohort.group.start
        self.decision = None
        if policy is None or decode is None:
            return
        load = self.load_of(decode, inflight.batch, LayerGroup(start, start))
        self._asked = (inflight.batch, decode, load)
        view = PaceView(load, start, self._due_s(decode.reqs))
        try:
            decision = policy.next_layers(view)
            inflight.cohort = inflight.cohort.with_next_layers(decision.layers)
            self.decision = decision
            self._metrics.paced(decision)
        except Exception as error:
            self._policy_failed(error)

    def load_of(
        self, decode: ScheduleBatch | None, prompt: ScheduleBatch | None, group: LayerGroup | None = None
    ) -> StepLoad:
        """What a step with these batches runs; without a group the prompt goes through all layers."""
        asked = self._asked
        if group is not None and asked is not None and asked[0] is prompt and asked[1] is decode:
            self._asked = None
            return replace(asked[2], prompt_layers=self.sizes.weight(group.start, group.end))
        rows, tokens = 0, 0
        if decode is not None:
            rows = len(decode.reqs)
            tokens = self._context_tokens(decode, rows)
        if prompt is None:
            return StepLoad(rows, tokens)
        lens, prefixes = tuple(prompt.extend_lens), tuple(prompt.prefix_lens)
        start, end = (group.start, group.end) if group else (0, self.sizes.num_layers)
        weight = self.sizes.weight(start, end)
        return StepLoad(rows, tokens, lens, prefixes, weight, self._is_apart and decode is not None)

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
        if self._file is not None and self._begun is not None:
            self._file.write(self._begun)

    def _set_up(self) -> None:
        """Follow the operator from one policy to another; rank 0 prepares what a new one starts from."""
        policy = self._controls.step_policy
        if policy is self._policy:
            return
        self._policy, self.decision = policy, None
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
            path = self._controls.config.layered_calibration_file
            self._file = None if path is None else CalibrationFile.of(scheduler, self.sizes, path)
            self._desk.start = start_of(scheduler, self._file)

    def _policy_failed(self, error: Exception) -> None:
        if isinstance(error, ConfigError):
            raise error
        self._failed(error)

    def _begin(self, policy: StepPolicy, start: Start) -> None:
        try:
            policy.begin(self.sizes, self._layers, start)
        except ValueError as error:
            path = self._controls.config.layered_calibration_file
            raise ConfigError(f"--layered-calibration-file {path}: {error}; delete it") from error
        self._begun = policy

    def _take_news(self, policy: StepPolicy) -> None:
        news = self._desk.take(has_other_ranks=self._has_other_ranks)
        self._now_s = news.now_s
        if news.start is not None:
            self._begin(policy, news.start)
        for duration_s in news.durations_s:
            self._learn(policy, *self._learning.popleft(), duration_s)
        gap_s = self._heard.at(self._now_s)
        if gap_s is not None:
            policy.spaced(gap_s, self._paced)
        self._paced = self.decision is not None
        for req in reversed(self._scheduler.waiting_queue):  # the youngest come last
            if hasattr(req, "layered_arrived_s"):
                break
            req.layered_arrived_s = self._now_s

    def _learn(self, policy: StepPolicy, load: StepLoad, kind: str, duration_s: float) -> None:
        predicted_s = policy.observe(load, duration_s)
        self._metrics.predicted(kind, predicted_s, duration_s)
        if self._file is not None:
            self._file.step_done(policy)

    def _waiting(self, most: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens to compute of prompts that wait, and tokens before them, until `most` are together."""
        scheduler = self._scheduler
        lens: list[int] = []
        prefixes: list[int] = []
        chunked = scheduler.chunked_req
        reqs = ([] if chunked is None else [chunked]) + scheduler.waiting_queue
        for req in reqs:
            done = req.extend_range.end if req is chunked else len(req.prefix_indices)
            if req.seqlen > done:
                lens.append(req.seqlen - done)
                prefixes.append(done)
            if sum(lens) >= most:
                break
        return tuple(lens), tuple(prefixes)

    def _due_s(self, reqs: list[Any]) -> float | None:
        """Seconds until the earliest next token is due that is not late already."""
        limit_ms = self._controls.config.slo_tbt_ms
        if limit_ms is None:
            return None
        limit_s = limit_ms / 1e3
        heard_s = self._heard.first_s(reqs, self._now_s - limit_s)
        return limit_s if heard_s is None else heard_s + limit_s - self._now_s

    def _order_queue(self, policy: StepPolicy) -> None:
        """Prompts with a limit on their first token go by slack; SGLang then takes them in this order."""
        limit_ms, queue = self._controls.config.slo_ttft_ms, self._scheduler.waiting_queue
        if limit_ms is None or len(queue) < 2 or not _is_first_come(self._scheduler):
            return
        prompts = [
            WaitingPrompt(
                getattr(req, "layered_arrived_s", self._now_s),
                policy.prompt_s(req.seqlen - len(req.prefix_indices)),
            )
            for req in queue
        ]
        queue[:] = [queue[index] for index in order_by_slack(prompts, self._now_s, limit_ms / 1e3)]


def _context(batch: ScheduleBatch) -> int:
    lens = batch.seq_lens_cpu
    return _tokens(batch.reqs) if lens is None else int(lens.sum())


def _tokens(reqs: list[Any]) -> int:
    return sum(req.seqlen for req in reqs)


def _is_padded(scheduler: Any) -> bool:
    """SGLang's torch attention computes rows for cached tokens too."""
    return bool(scheduler.server_args.attention_backend == "torch_native")


def _is_first_come(scheduler: Any) -> bool:
    args = scheduler.server_args
    return bool(args.schedule_policy == "fcfs" and not args.enable_priority_scheduling)
