"""One tick of the pipeline: a micro-batch's decode on every stage, beside it one group of each cohort."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_layered.core.cohort import Cohort
from sglang_layered.core.stages import PipelineStages
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.results import LaunchedStep, StepTimer
from sglang_layered.upstream.chunks import LaunchedChunk


@dataclass(frozen=True, slots=True)
class GroupWork:
    """What one cohort does in a tick, the same on every rank: its group runs on `stage`.

    `cohort` and `rows`, each request with its prompt rows, are as in this tick; requests may leave later.
    `overtakes` is the oldest cohort that has come to the stage, where this one goes before it.
    """

    inflight: InFlightCohort
    cohort: Cohort
    rows: tuple[tuple[Any, int], ...]
    stage: int
    enters_stage: bool
    leaves_stage: bool
    overtakes: InFlightCohort | None = None


@dataclass(slots=True)
class PipelineTick:
    """Stands where SGLang keeps a micro-batch's ScheduleBatch; it answers what SGLang asks of one there."""

    decode: ScheduleBatch | None
    works: tuple[GroupWork, ...]
    inflight: tuple[InFlightCohort, ...]  # those that wait for a stage as well
    step: LaunchedStep = field(init=False)  # as this rank launched it
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

    def launched_as(self, number: int, timer: StepTimer, own: GroupWork | None) -> None:
        """This rank launches it as step `number`, with `own` work beside the decode."""
        last = self.last_group
        finished = None if last is None else last.cohort
        if own is None:
            self.step = LaunchedStep(number, "decode", (), timer, finished=finished)
        else:
            self.step = LaunchedStep(number, "layered", (), timer, own.cohort, own.rows, finished=finished)

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


@dataclass(slots=True)
class TickResult:
    """SGLang's result of each batch that got tokens."""

    parts: list[tuple[ScheduleBatch, GenerationBatchResult]]
    skipped_output_comm: bool = False
    logits_output: None = None  # SGLang 0.5.23 looks for masks of sampling in it


def works_of(cohorts: Sequence[InFlightCohort], stages: PipelineStages) -> tuple[GroupWork, ...]:
    """The next group of one cohort on each stage; others that have come there wait.

    That is the oldest, or the most urgent where the oldest has run a group since it was overtaken.
    """
    by_stage: dict[int, list[InFlightCohort]] = {}
    for item in cohorts:
        by_stage.setdefault(stages.stage_of(item.cohort.group), []).append(item)
    works = []
    for stage, waiting in by_stage.items():
        oldest = waiting[0]
        item = min(waiting, key=lambda item: item.urgency) if oldest.has_run else oldest
        group = item.cohort.group
        rows = tuple(zip(item.reqs, item.batch.extend_lens, strict=True))
        enters, leaves = group.start == stages.cuts[stage], group.end == stages.cuts[stage + 1]
        overtakes = None if item is oldest else oldest
        works.append(GroupWork(item, item.cohort, rows, stage, enters, leaves, overtakes))
    return tuple(works)
