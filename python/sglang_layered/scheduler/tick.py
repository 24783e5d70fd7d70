"""One tick of the pipeline: a micro-batch's decode on every stage, beside it one group of each cohort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_layered.core.cohort import Cohort
from sglang_layered.core.plan import LayerGroup
from sglang_layered.core.stages import PipelineStages
from sglang_layered.core.view import StepKind
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.results import LaunchedStep, Outcome, StepTimer
from sglang_layered.upstream.chunks import LaunchedChunk


@dataclass(frozen=True, slots=True)
class GroupWork:
    """What one cohort does in a tick, the same on every rank: `group` runs on `stage`.

    `cohort` and `rows`, each request with its prompt rows, are as in this tick; requests may leave later.
    """

    inflight: InFlightCohort
    cohort: Cohort
    rows: tuple[tuple[Any, int], ...]
    stage: int
    enters_stage: bool
    leaves_stage: bool

    @property
    def group(self) -> LayerGroup:
        """The group of this tick."""
        return self.cohort.group


@dataclass(slots=True)
class PipelineTick:
    """Stands where SGLang keeps a micro-batch's ScheduleBatch; it answers what SGLang asks of one there."""

    decode: ScheduleBatch | None
    works: tuple[GroupWork, ...]
    inflight: tuple[InFlightCohort, ...]  # those that wait for a stage as well
    timer: StepTimer | None = None
    number: int = 0
    chunk: LaunchedChunk | None = None
    forward_mode: ForwardMode = field(default=ForwardMode.MIXED)

    @property
    def completed(self) -> InFlightCohort | None:
        """The cohort that has its first tokens after this tick: at most one, it leaves the last stage."""
        last = self.last_group
        return None if last is None else last.inflight

    @property
    def last_group(self) -> GroupWork | None:
        """The last group of the cohort that this tick completes."""
        return next((work for work in self.works if work.cohort.is_last_group), None)

    def work_on(self, stage: int) -> GroupWork | None:
        """The group that this stage runs."""
        return next((work for work in self.works if work.stage == stage), None)

    @property
    def batches(self) -> list[ScheduleBatch]:
        """The batches that get tokens in this tick: the decode's, then the completed cohort's."""
        done = self.completed
        found = [self.decode, None if done is None else done.batch]
        return [batch for batch in found if batch is not None]

    @property
    def reqs(self) -> list[Any]:
        """All requests that are in it, so that an abort finds them."""
        decode = [] if self.decode is None else self.decode.reqs
        return [*decode, *(req for item in self.inflight for req in item.reqs)]

    @property
    def return_logprob(self) -> bool:
        """True when a batch that gets tokens wants log-probabilities."""
        return any(batch.return_logprob for batch in self.batches)

    def is_empty(self) -> bool:
        """False: a tick is made when there is something to run."""
        return False

    def batch_size(self) -> int:
        """Requests in it."""
        return len(self.reqs)


@dataclass(frozen=True, slots=True)
class LaunchedBatch:
    """A batch that SGLang launched as in stock, as it was then."""

    number: int
    kind: StepKind
    timer: StepTimer
    rows: tuple[tuple[Any, int], ...]  # each request whose prompt is computed, with its rows
    chunk: LaunchedChunk | None

    @classmethod
    def of(cls, batch: ScheduleBatch, number: int, timer: StepTimer) -> LaunchedBatch:
        """What the processing of its results is to know."""
        if not batch.forward_mode.is_extend():
            return cls(number, "decode", timer, (), None)
        rows = tuple(zip(batch.reqs, batch.extend_lens, strict=True))
        return cls(number, "prefill", timer, rows, LaunchedChunk.of(batch))


@dataclass(slots=True)
class TickResult:
    """SGLang's result of each batch that got tokens."""

    parts: list[tuple[ScheduleBatch, GenerationBatchResult]]
    skipped_output_comm: bool = False


def works_of(cohorts: Sequence[InFlightCohort], stages: PipelineStages) -> tuple[GroupWork, ...]:
    """The next group of the oldest cohort on each stage; others that have come there wait."""
    by_stage: dict[int, GroupWork] = {}
    for item in cohorts:
        group = item.cohort.group
        stage = stages.stage_of(group)
        rows = tuple(zip(item.reqs, item.batch.extend_lens, strict=True))
        enters, leaves = group.start == stages.cuts[stage], group.end == stages.cuts[stage + 1]
        by_stage.setdefault(stage, GroupWork(item, item.cohort, rows, stage, enters, leaves))
    return tuple(by_stage.values())


def step_of(
    launched: PipelineTick | LaunchedBatch, parts: Sequence[tuple[ScheduleBatch, Any]], rank: int
) -> LaunchedStep:
    """The step as the stage of `rank` ran it."""
    outcomes = tuple(Outcome(part, part, result) for part, result in parts)
    if isinstance(launched, LaunchedBatch):
        return LaunchedStep(launched.number, launched.kind, outcomes, launched.timer, prompt=launched.rows)
    if launched.timer is None:
        raise AssertionError("results of a tick that was not launched")
    number, timer, work, last = launched.number, launched.timer, launched.work_on(rank), launched.last_group
    finished = None if last is None else last.cohort
    if work is None:
        return LaunchedStep(number, "decode", outcomes, timer, finished=finished)
    return LaunchedStep(number, "layered", outcomes, timer, work.cohort, work.rows, finished=finished)
