"""Tells listeners what the loop did, in values that leave the scheduler, and traces it for `--enable-trace`.

With no listener no value is built. Spans, one a request and layer group, lie beside SGLang's own of a
request's life. Upstream: srt/observability/req_time_stats.py.
"""

import time
from collections.abc import Callable
from typing import Any

from sglang.srt.observability.req_time_stats import RequestStageConfig
from sglang.srt.observability.trace import get_global_tracing_enabled

from sglang_layered.config import LayeredConfig
from sglang_layered.core import events
from sglang_layered.core.pacing import ModelSizes
from sglang_layered.listeners.dispatch import Listeners, find_listeners
from sglang_layered.scheduler import stream
from sglang_layered.scheduler.results import LaunchedStep
from sglang_layered.upstream.releases import serving

LAYER_GROUP = RequestStageConfig("layer_group", level=3)


class Reporter:
    """Builds `core/events.py` from the loop's events and hands them to the listeners."""

    def __init__(self, scheduler: Any, listeners: Listeners) -> None:
        self._scheduler = scheduler
        self._listeners = listeners
        self._decoding: list[Any] = []  # requests that get a token from the results at hand

    @classmethod
    def of(cls, scheduler: Any, config: LayeredConfig) -> "Reporter":
        """With the listeners that the flags name."""
        return cls(scheduler, find_listeners(listener_specs(scheduler, config)))

    def handlers(self) -> stream.Handlers:
        """What becomes of each event of the loop."""
        made: stream.Handlers = {
            stream.Admitted: self._admitted,
            stream.ResultsDue: self._results_due,
            stream.StepDone: self._step_done,
            stream.Left: self._left,
            stream.Answered: self._answered,
            stream.Dropped: self._dropped,
            stream.SettingsChanged: self._settings_changed,
        }
        return made if self._listeners else {}

    def started(self, policy: str, cohort_tokens: int | None, sizes: ModelSizes) -> None:
        """The loop starts."""
        if self._listeners:
            self._tell(events.ServingStarted, policy, cohort_tokens, sizes)

    def close(self) -> None:
        """The server ends."""
        self._listeners.close()

    def _tell(self, kind: Callable[..., events.Event], *values: Any) -> None:
        """Something has happened now, before the next step."""
        self._listeners.emit(kind(self._scheduler.forward_ct, time.monotonic(), *values))

    def _admitted(self, event: stream.Admitted) -> None:
        batch, cohort = event.inflight.batch, event.inflight.cohort
        rows, prefixes = (
            dict(zip(cohort.request_ids, lens, strict=True))
            for lens in (batch.extend_lens, batch.prefix_lens)
        )
        self._tell(events.CohortAdmitted, cohort.plan, rows, prefixes)

    def _results_due(self, event: stream.ResultsDue) -> None:
        """Only before they are processed can be told who had not finished before."""
        self._decoding = [req for req in event.step.decodes if not (req.finished() or req.is_retracted)]

    def _step_done(self, event: stream.StepDone) -> None:
        step, timing, now, cohort = event.step, event.timing, time.monotonic(), event.step.cohort
        self._listeners.emit(
            events.StepDone(
                step=step.number,
                time_s=now,
                kind=step.kind,
                start_s=step.timer.start_s,
                duration_s=timing.duration_s,
                num_decode_rows=timing.num_decode_rows,
                num_prompt_rows=timing.num_prompt_rows,
                decode={req.rid: len(req.output_ids) for req in self._decoding},
                prompt=dict(zip(_prompt_ids(step), (rows for _, rows in step.prompt), strict=True)),
                group=None if cohort is None else cohort.group,
                group_index=0 if cohort is None else cohort.next_group,
                num_groups=1 if cohort is None else cohort.plan.num_groups,
                strategy=step.strategy,
                arrived_s={req.rid: req.time_stats.scheduler_recv_time for req, _ in step.prompt},
                load=step.load,
                decision=step.decision,
            )
        )
        self._decoding = []
        if cohort is not None:
            index, num_groups, ids = cohort.next_group, cohort.plan.num_groups, cohort.request_ids
            self._listeners.emit(events.GroupDone(step.number, now, cohort.group, index, num_groups, ids))
            if cohort.is_last_group:
                self._listeners.emit(events.CohortFinished(step.number, now, ids))

    def _dropped(self, event: stream.Dropped) -> None:
        cohort = event.cohort
        self._tell(events.CohortDropped, cohort.request_ids, cohort.next_group, event.reason)

    def _left(self, event: stream.Left) -> None:
        cohort, ids = event.cohort, tuple(req.rid for req in event.reqs)
        self._tell(events.RequestsLeft, ids, cohort.request_ids, cohort.next_group, events.DropReason.ABORTED)

    def _answered(self, event: stream.Answered) -> None:
        self._tell(events.PolicyAnswered, event.question, event.request_ids, event.seconds)

    def _settings_changed(self, event: stream.SettingsChanged) -> None:
        if event.has_other_mode:
            self._tell(events.ModeChanged, event.config.prefill_mode, event.reason)


def _prompt_ids(step: LaunchedStep) -> tuple[str, ...]:
    if step.cohort is not None:
        return step.cohort.request_ids
    return tuple(req.rid for req in step.outcomes[0].batch_at_launch.reqs) if step.kind == "prefill" else ()


def listener_specs(scheduler: Any, config: LayeredConfig) -> list[str]:
    """Listeners of this process: only tensor rank 0 has any.

    In one, `{dp}` is the data-parallel rank and `{pp}` the pipeline stage.
    """
    ranks = serving.ranks_of(scheduler)
    if ranks.tp_rank != 0:
        return []
    specs = list(config.layered_listeners or ())
    for name, rank in {"{dp}": ranks.dp_rank or 0, "{pp}": ranks.pp_rank}.items():
        specs = [spec.replace(name, str(rank)) for spec in specs]
    return specs


class Spans:
    """Writes them while tracing is enabled, which SGLang decides when a server starts."""

    def handlers(self) -> stream.Handlers:
        """Nothing without tracing."""
        return {stream.StepDone: self._step_done} if get_global_tracing_enabled() else {}

    def _step_done(self, event: stream.StepDone) -> None:
        step, cohort = event.step, event.step.cohort
        if cohort is None:
            return
        attributes = {
            "layers.start": cohort.group.start,
            "layers.end": cohort.group.end,
            "group.index": cohort.next_group,
            "group.count": cohort.plan.num_groups,
            "step": step.number,
        }
        end_s = step.timer.start_s + event.timing.duration_s
        for req, _ in step.prompt:
            req.time_stats.trace_slice(LAYER_GROUP, step.timer.start_s, end_s, attributes)
