"""Launched steps, how long they took, and their results: processed exactly once, in launch order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult

from sglang_layered.core.cohort import Cohort
from sglang_layered.core.pacing import Decision, StepLoad
from sglang_layered.core.view import StepKind, StepTiming


class StepTimer:
    """Times one step: by the clock on CPU, where a launch computes; with two events on the stream of a GPU.

    `start_s` is `time.monotonic()` at the launch. `stop` must be called on the same stream as the start.
    """

    def __init__(self, stream: Any | None) -> None:
        self.start_s = time.monotonic()
        self._stream = stream
        self._stop_s = self.start_s
        self._events: tuple[Any, Any] | None = None
        if stream is not None:
            self._events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self._events[0].record(stream)

    @classmethod
    def start(cls, scheduler: Any) -> StepTimer:
        """Start on the stream that the scheduler's forwards run on."""
        if scheduler.device != "cuda":
            return cls(None)
        return cls(scheduler.forward_stream if scheduler.enable_overlap else torch.cuda.current_stream())

    def stop(self) -> None:
        """The step is launched."""
        self._stop_s = time.monotonic()
        if self._events is not None:
            self._events[1].record(self._stream)

    def duration_s(self) -> float:
        """Seconds of the forward; on a GPU it waits for the step's end."""
        if self._events is None:
            return self._stop_s - self.start_s
        start, stop = self._events
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3


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
    `finished` is the cohort that has run its last group with this step, on whichever stage.
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
    finished: Cohort | None = None

    @property
    def decodes(self) -> list[Any]:
        """Requests that decoded, also those that had finished before."""
        batches = [outcome.seen for outcome in self.outcomes]
        return [req for batch in batches if batch.forward_mode.is_decode() for req in batch.reqs]

    def timing(self, num_layers: int) -> StepTiming:
        """How long it took; a step without a cohort runs all `num_layers` layers of this rank."""
        if self.cohort is not None:
            num_layers = self.cohort.group.num_layers
        num_decode_rows = sum(
            len(outcome.seen.reqs) for outcome in self.outcomes if outcome.seen.forward_mode.is_decode()
        )
        prompt_rows = sum(num_rows for _, num_rows in self.prompt)
        return StepTiming(self.kind, self.timer.duration_s(), num_decode_rows, prompt_rows, num_layers)


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
