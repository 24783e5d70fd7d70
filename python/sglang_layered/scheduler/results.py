"""Results of launched steps: processed exactly once, in launch order, at most one step late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult

from sglang_layered.core.cohort import Cohort
from sglang_layered.core.pacing import Decision, StepLoad
from sglang_layered.core.view import StepKind
from sglang_layered.scheduler.timer import StepTimer


@dataclass(frozen=True, slots=True)
class Outcome:
    """One batch of a step and what the forward made of it.

    `seen` is the batch as it was at the launch; `live` the scheduler's own, which goes on changing.
    """

    live: ScheduleBatch
    seen: ScheduleBatch
    result: GenerationBatchResult


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step whose results are still to be processed; `cohort` is the one that ran a group in it.

    `prompt` holds each request whose prompt was computed, with its rows. `decision` is a step policy's.
    """

    number: int
    kind: StepKind
    outcomes: tuple[Outcome, ...]
    timer: StepTimer
    cohort: Cohort | None = None
    prompt: tuple[tuple[Any, int], ...] = ()
    strategy: str | None = None
    load: StepLoad | None = None
    decision: Decision | None = None

    @property
    def prompt_rows(self) -> tuple[int, ...]:
        """Rows of each request whose prompt was computed."""
        return tuple(num_rows for _, num_rows in self.prompt)

    @property
    def decodes(self) -> list[Any]:
        """Requests that decoded, also those that had finished before."""
        batches = [outcome.seen for outcome in self.outcomes]
        return [req for batch in batches if batch.forward_mode.is_decode() for req in batch.reqs]

    @property
    def num_decode_rows(self) -> int:
        """Rows of the requests that decoded."""
        return len(self.decodes)


class StepResults:
    """SGLang's `result_queue` in layered mode; SGLang itself only asks for its length.

    With the overlap scheduler a step's results are processed after the next step's launch, without it right
    after its own. Whatever needs the present state processes all first.
    """

    def __init__(self, scheduler: Any, process: Callable[[LaunchedStep], None]) -> None:
        self._scheduler = scheduler
        self._process = process
        self._queue: deque[LaunchedStep] = deque()
        scheduler.result_queue = self._queue

    def __len__(self) -> int:
        return len(self._queue)

    def launched(self, step: LaunchedStep) -> None:
        """Take a new step; process what was launched before it, and without overlap the step itself."""
        pending = len(self._queue)
        self._queue.append(step)
        self._take(pending if self._scheduler.enable_overlap else pending + 1)
        for outcome in step.outcomes:
            self._scheduler.launch_batch_sample_if_needed(outcome.result, outcome.live)

    def process_all(self) -> bool:
        """Process everything that is pending; False when there was nothing."""
        had_some = bool(self._queue)
        self._take(len(self._queue))
        return had_some

    def _take(self, count: int) -> None:
        for _ in range(count):
            self._process(self._queue.popleft())
