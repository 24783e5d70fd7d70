"""Watches the overlap loop as a slow device would see it.

On CPU a launch has computed when it returns, so races between the scheduler and a running forward do not
show. Here a step counts as running until its results are synchronised: until then every tensor that the
scheduler made for it must stay alive and as it was, and its results cannot be read.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

from harness import SteppedScheduler
from sglang_layered.scheduler.results import LaunchedStep


@dataclass
class Watched:
    """A tensor that a running step reads: where it was found, whether it lives, what it held."""

    where: str
    ref: weakref.ref[torch.Tensor]
    content: torch.Tensor


class LateEvent:
    """Stands for a copy to the host that is not done before somebody waits for it."""

    def __init__(self, result: Any) -> None:
        self._result, self._tokens = result, result.next_token_ids
        result.next_token_ids = torch.full_like(self._tokens, -1)

    def synchronize(self) -> None:
        self._result.next_token_ids = self._tokens


@dataclass
class Sanitizer:
    """What was seen: steps watched, tensors watched, and every violation in words."""

    num_steps: int = 0
    num_tensors: int = 0
    violations: list[str] = field(default_factory=list)
    _next: list[Watched] = field(default_factory=list)
    _running: dict[int, list[Watched]] = field(default_factory=dict)
    _parked: tuple[torch.Tensor, torch.Tensor] | None = None

    def prepared(self, batch: ScheduleBatch) -> None:
        """A batch's inputs are handed to a forward."""
        for where, tensor in tensors_of(batch):
            self._next.append(Watched(where, weakref.ref(tensor), tensor.clone()))

    def launched(self, step: LaunchedStep) -> None:
        """The forward runs from now on, and its results are not there."""
        self._running[step.number], self._next = self._next, []
        self.num_steps += 1
        self.num_tensors += len(self._running[step.number])
        for outcome in step.outcomes:
            if outcome.result.delay_sample_func is None:
                outcome.result.copy_done = LateEvent(outcome.result)

    def processing(self, step: LaunchedStep) -> None:
        """The step has ended: was everything it read left alone until now?"""
        for watched in self._running.pop(step.number):
            tensor = watched.ref()
            if tensor is None:
                self.violations.append(f"step {step.number}: {watched.where} was freed while it ran")
            elif not torch.equal(tensor, watched.content):
                self.violations.append(f"step {step.number}: {watched.where} was changed while it ran")

    def between_groups(self, parked: Any) -> None:
        """Parked rows wait unchanged for the cohort's next group."""
        if self._parked is not None and not torch.equal(*self._parked):
            self.violations.append("parked rows were changed between two groups")
        rows = None if parked is None else parked.tensors["hidden_states"]
        self._parked = None if rows is None else (rows, rows.clone())


def tensors_of(batch: ScheduleBatch) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in a batch's fields and in those of its sampling information."""
    for item in fields(batch):
        value = getattr(batch, item.name, None)
        if isinstance(value, torch.Tensor):
            yield item.name, value
        elif item.name == "sampling_info" and is_dataclass(value):
            for inner in fields(value):
                tensor = getattr(value, inner.name, None)
                if isinstance(tensor, torch.Tensor):
                    yield f"sampling_info.{inner.name}", tensor


@contextmanager
def sanitized(stepped: SteppedScheduler) -> Iterator[Sanitizer]:
    """Watch every step made inside."""
    found = Sanitizer()
    results, loop = stepped.loop.results, stepped.loop
    init_new, launched, process = ForwardBatch.init_new, results.launched, results._process

    def watch_inputs(batch: ScheduleBatch, *args: Any, **kwargs: Any) -> ForwardBatch:
        found.prepared(batch)
        return init_new(batch, *args, **kwargs)

    def watch_launch(step: LaunchedStep) -> None:
        found.launched(step)
        found.between_groups(loop.inflight.parked if loop.inflight else None)
        launched(step)

    def watch_end(step: LaunchedStep) -> None:
        found.processing(step)
        process(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ForwardBatch, "init_new", watch_inputs)
        patch.setattr(results, "launched", watch_launch)
        patch.setattr(results, "_process", watch_end)
        yield found
