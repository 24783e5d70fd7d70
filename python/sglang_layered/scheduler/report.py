"""Tells listeners what the loop did, in values that leave the scheduler. With no listener none is built."""

from __future__ import annotations

import time
from typing import Any

from sglang_layered.config import LayeredConfig
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.events import (
    CohortAdmitted,
    CohortDropped,
    CohortFinished,
    DropReason,
    Event,
    GroupDone,
    ModeChanged,
    RequestsLeft,
    ServingStarted,
    StepDone,
)
from sglang_layered.core.pacing import ModelSizes
from sglang_layered.listeners.dispatch import Listener, Listeners, find_listeners
from sglang_layered.scheduler import stream
from sglang_layered.scheduler.results import LaunchedStep


class Reporter:
    """Builds `core/events.py` from the loop's events and hands them to the listeners."""

    def __init__(self, scheduler: Any, listeners: Listeners) -> None:
        self._scheduler = scheduler
        self._listeners = listeners
        self._decoding: list[Any] = []  # requests that get a token from the results at hand

    @classmethod
    def of(cls, scheduler: Any, config: LayeredConfig) -> Reporter:
        """With the listeners that the flags name."""
        return cls(scheduler, find_listeners(listener_specs(scheduler, config)))

    def attach(self, listener: Listener) -> None:
        """Let it listen from now on."""
        self._listeners.attach(listener)

    def handlers(self) -> stream.Handlers:
        """What becomes of each event of the loop."""
        made: stream.Handlers = {
            stream.Admitted: self._admitted,
            stream.ResultsDue: self._results_due,
            stream.StepDone: self._step_done,
            stream.Left: self._left,
            stream.Dropped: self._dropped,
            stream.SettingsChanged: self._settings_changed,
        }
        return made if self._listeners else {}

    def started(self, policy: str, cohort_tokens: int | None, sizes: ModelSizes) -> None:
        """The loop starts."""
        if self._listeners:
            now = time.monotonic()
            self._emit(ServingStarted(self._scheduler.forward_ct, now, policy, cohort_tokens, sizes))

    def close(self) -> None:
        """The server ends."""
        self._listeners.close()

    def _emit(self, event: Event) -> None:
        self._listeners.emit(event)

    def _admitted(self, event: stream.Admitted) -> None:
        batch, cohort = event.inflight.batch, event.inflight.cohort
        ids = cohort.request_ids
        self._emit(
            CohortAdmitted(
                step=self._scheduler.forward_ct,
                time_s=time.monotonic(),
                plan=cohort.plan,
                prompt_rows=dict(zip(ids, batch.extend_lens, strict=True)),
                prefix_tokens=dict(zip(ids, batch.prefix_lens, strict=True)),
            )
        )

    def _results_due(self, event: stream.ResultsDue) -> None:
        """Only before they are processed can be told who had not finished before."""
        self._decoding = [req for req in event.step.decodes if not (req.finished() or req.is_retracted)]

    def _step_done(self, event: stream.StepDone) -> None:
        step, timing, now, cohort = event.step, event.timing, time.monotonic(), event.step.cohort
        self._emit(
            StepDone(
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
            self._group_done(step.number, now, cohort)

    def _group_done(self, number: int, now: float, cohort: Cohort) -> None:
        index, num_groups = cohort.next_group, cohort.plan.num_groups
        self._emit(GroupDone(number, now, cohort.group, index, num_groups, cohort.request_ids))
        if cohort.is_last_group:
            self._emit(CohortFinished(number, now, cohort.request_ids))

    def _dropped(self, event: stream.Dropped) -> None:
        step, now, cohort = self._scheduler.forward_ct, time.monotonic(), event.cohort
        self._emit(CohortDropped(step, now, cohort.request_ids, cohort.next_group, event.reason))

    def _left(self, event: stream.Left) -> None:
        step, now, cohort = self._scheduler.forward_ct, time.monotonic(), event.cohort
        ids = tuple(req.rid for req in event.reqs)
        self._emit(RequestsLeft(step, now, ids, cohort.request_ids, cohort.next_group, DropReason.ABORTED))

    def _settings_changed(self, event: stream.SettingsChanged) -> None:
        if event.has_other_mode:
            step, now = self._scheduler.forward_ct, time.monotonic()
            self._emit(ModeChanged(step, now, event.config.prefill_mode, event.reason))


def _prompt_ids(step: LaunchedStep) -> tuple[str, ...]:
    if step.cohort is not None:
        return step.cohort.request_ids
    return tuple(req.rid for req in step.outcomes[0].seen.reqs) if step.kind == "prefill" else ()


def listener_specs(scheduler: Any, config: LayeredConfig) -> list[str]:
    """Listeners of this process: only tensor rank 0 has any.

    In one, `{dp}` is the data-parallel rank and `{pp}` the pipeline stage.
    """
    if scheduler.ps.tp_rank != 0:
        return []
    ranks = {"{dp}": scheduler.ps.dp_rank or 0, "{pp}": scheduler.ps.pp_rank}
    specs = list(config.layered_listeners or ())
    for name, rank in ranks.items():
        specs = [spec.replace(name, str(rank)) for spec in specs]
    return specs
