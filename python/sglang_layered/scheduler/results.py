"""Launched steps, what they ran, how long they took, and their results: processed once, in launch order."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult

from sglang_layered.core.choice import APART
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.pacing import Decision, ModelSizes, StepLoad
from sglang_layered.core.plan import LayerGroup
from sglang_layered.core.view import StepKind, StepTiming

STEPS_PER_COUNT = 8


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
    def start(cls, scheduler: Any) -> "StepTimer":
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

    `batch` is the scheduler's own, which goes on changing.
    """

    batch: ScheduleBatch
    batch_at_launch: ScheduleBatch
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

    @classmethod
    def stock(
        cls,
        number: int,
        batch: ScheduleBatch,
        timer: StepTimer,
        outcomes: tuple[Outcome, ...] = (),
        load: StepLoad | None = None,
    ) -> "LaunchedStep":
        """A batch that SGLang launched as its own."""
        if not batch.forward_mode.is_extend():
            return cls(number, "decode", outcomes, timer, load=load)
        prompt = tuple(zip(batch.reqs, batch.extend_lens, strict=True))
        return cls(number, "prefill", outcomes, timer, prompt=prompt, load=load)

    @property
    def decodes(self) -> list[Any]:
        """Requests that decoded, also those that had finished before."""
        batches = [outcome.batch_at_launch for outcome in self.outcomes]
        return [req for batch in batches if batch.forward_mode.is_decode() for req in batch.reqs]

    def timing(self, num_layers: int, rows_per_request: int = 1) -> StepTiming:
        """How long it took; a step without a cohort runs all `num_layers` layers of this rank.

        A request that decodes has `rows_per_request` rows.
        """
        if self.cohort is not None:
            num_layers = self.cohort.group.num_layers
        num_decode_rows = rows_per_request * sum(
            len(outcome.batch_at_launch.reqs)
            for outcome in self.outcomes
            if outcome.batch_at_launch.forward_mode.is_decode()
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
            self._scheduler.launch_batch_sample_if_needed(outcome.result, outcome.batch)

    def process_all(self) -> bool:
        """Process everything that is pending; False when there was nothing."""
        had_some = bool(self._queue)
        self._take(len(self._queue))
        return had_some

    def _take(self, count: int) -> None:
        for _ in range(count):
            self._process(self._queue.popleft())


class StepLoads:
    """What steps run in the terms of the step-time model: rows and context tokens of batches.

    Whether a step runs its rows apart, its strategy says. A request has `rows_per_request` in a decode, more
    than one where drafts are verified.
    """

    def __init__(self, sizes: ModelSizes, rows_per_request: int = 1) -> None:
        self._sizes = sizes
        self.rows_per_request = rows_per_request
        self._context = (0, 0, 0)  # decode rows, tokens that they see, steps since these were counted
        self._latest: tuple[ScheduleBatch, ScheduleBatch, StepLoad] | None = None

    def at_rest(self, decode: ScheduleBatch, prompt: ScheduleBatch, strategy: str | None) -> StepLoad:
        """A layered step before its layers are chosen: the prompt in no layer."""
        rows, tokens = self._of_decode(decode)
        lens, prefixes = tuple(prompt.extend_lens), tuple(prompt.prefix_lens)
        load = StepLoad(rows, tokens, lens, prefixes, 0.0, strategy in APART)
        self._latest = (decode, prompt, load)
        return load

    def of_group(
        self, decode: ScheduleBatch | None, prompt: ScheduleBatch, group: LayerGroup, strategy: str | None
    ) -> StepLoad:
        """A layered step in the strategy that runs it."""
        weight = self._sizes.weight(group.start, group.end)
        latest, self._latest = self._latest, None
        if decode is None:
            return StepLoad(0, 0, tuple(prompt.extend_lens), tuple(prompt.prefix_lens), weight)
        if latest is not None and latest[0] is decode and latest[1] is prompt:
            load = latest[2]
        else:
            load = self.at_rest(decode, prompt, strategy)
        return replace(load, prompt_layers=weight, is_apart=strategy in APART)

    def of_decode(self, decode: ScheduleBatch) -> StepLoad:
        """A decode step of SGLang's."""
        return StepLoad(*self._of_decode(decode))

    def of_prompt(self, prompt: ScheduleBatch) -> StepLoad:
        """A prefill step of SGLang's: all layers."""
        weight = self._sizes.weight(0, self._sizes.num_layers)
        return StepLoad(0, 0, tuple(prompt.extend_lens), tuple(prompt.prefix_lens), weight)

    def count_anew(self) -> None:
        """The next decode batch is of other requests, though perhaps of as many."""
        self._context = (0, 0, 0)

    def _of_decode(self, decode: ScheduleBatch) -> tuple[int, int]:
        """Rows, and tokens that they see: a row's grow by one a step, so they are counted now and then."""
        rows = len(decode.reqs) * self.rows_per_request
        known_rows, tokens, age = self._context
        if rows == known_rows and age < STEPS_PER_COUNT:
            self._context = (rows, tokens + rows, age + 1)
        else:
            self._context = (rows, _context_tokens(decode), 0)
        return rows, self._context[1]


def _context_tokens(batch: ScheduleBatch) -> int:
    lens = batch.seq_lens_cpu
    return sum(req.seqlen for req in batch.reqs) if lens is None else int(lens.sum())
