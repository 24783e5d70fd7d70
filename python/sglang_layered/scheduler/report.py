"""Tells listeners what the loop did. With no listener nothing is built."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sglang_layered.config import LayeredConfig
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.events import (
    CohortAdmitted,
    CohortDropped,
    CohortFinished,
    DropReason,
    GroupDone,
    ModeChanged,
    RequestsLeft,
    ServingStarted,
    StepDone,
)
from sglang_layered.core.pacing import ModelSizes
from sglang_layered.core.view import StepTiming
from sglang_layered.listeners.dispatch import Listeners
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.results import LaunchedStep


class Reporter:
    """Builds events from the scheduler's state and hands them to the listeners."""

    def __init__(self, scheduler: Any, listeners: Listeners) -> None:
        self._scheduler = scheduler
        self._listeners = listeners

    def started(self, policy: str, cohort_tokens: int | None, sizes: ModelSizes) -> None:
        """The loop starts."""
        if self._listeners:
            now = time.monotonic()
            self._listeners.emit(
                ServingStarted(self._scheduler.forward_ct, now, policy, cohort_tokens, sizes)
            )

    def admitted(self, inflight: InFlightCohort) -> None:
        """A cohort got its plan."""
        if not self._listeners:
            return
        batch, ids = inflight.batch, inflight.cohort.request_ids
        self._listeners.emit(
            CohortAdmitted(
                step=self._scheduler.forward_ct,
                time_s=time.monotonic(),
                plan=inflight.cohort.plan,
                prompt_rows=dict(zip(ids, batch.extend_lens, strict=True)),
                prefix_tokens=dict(zip(ids, batch.prefix_lens, strict=True)),
            )
        )

    def reqs_to_get_a_token(self, step: LaunchedStep) -> list[Any]:
        """Requests that decode in this step and had not finished before it."""
        if not self._listeners:
            return []
        return [
            req
            for outcome in step.outcomes
            if outcome.seen.forward_mode.is_decode()
            for req in outcome.seen.reqs
            if not (req.finished() or req.is_retracted)
        ]

    def step_done(self, step: LaunchedStep, timing: StepTiming, decoded: list[Any]) -> None:
        """A step's results were processed; `decoded` as given before that."""
        if not self._listeners:
            return
        now, cohort = time.monotonic(), step.cohort
        self._listeners.emit(
            StepDone(
                step=step.number,
                time_s=now,
                kind=step.kind,
                start_s=step.timer.start_s,
                duration_s=timing.duration_s,
                num_decode_rows=timing.num_decode_rows,
                num_prompt_rows=timing.num_prompt_rows,
                decode={req.rid: len(req.output_ids) for req in decoded},
                prompt=dict(zip(_prompt_ids(step), step.prompt_rows, strict=True)),
                group=None if cohort is None else cohort.group,
                group_index=0 if cohort is None else cohort.next_group,
                num_groups=1 if cohort is None else cohort.plan.num_groups,
                strategy=step.strategy,
                arrived_s={req.rid: req.time_stats.scheduler_recv_time for req, _ in step.prompt},
                load=step.load,
                decision=step.decision,
            )
        )
        if cohort is not None:
            self._group_done(step.number, now, cohort)

    def dropped(self, cohort: Cohort, reason: DropReason) -> None:
        """A cohort left before its last group."""
        if self._listeners:
            step, now = self._scheduler.forward_ct, time.monotonic()
            self._listeners.emit(CohortDropped(step, now, cohort.request_ids, cohort.next_group, reason))

    def left(self, cohort: Cohort, reqs: Sequence[Any]) -> None:
        """Requests left a cohort that goes on; `cohort` as it was before."""
        if self._listeners and reqs:
            step, now, ids = self._scheduler.forward_ct, time.monotonic(), tuple(req.rid for req in reqs)
            self._listeners.emit(
                RequestsLeft(step, now, ids, cohort.request_ids, cohort.next_group, DropReason.ABORTED)
            )

    def mode_changed(self, mode: str, reason: str) -> None:
        """The server goes on in another mode."""
        if self._listeners:
            self._listeners.emit(ModeChanged(self._scheduler.forward_ct, time.monotonic(), mode, reason))

    def close(self) -> None:
        """The server ends."""
        self._listeners.close()

    def _group_done(self, number: int, now: float, cohort: Cohort) -> None:
        self._listeners.emit(
            GroupDone(
                number, now, cohort.group, cohort.next_group, cohort.plan.num_groups, cohort.request_ids
            )
        )
        if cohort.is_last_group:
            self._listeners.emit(CohortFinished(number, now, cohort.request_ids))


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
