"""How long a step's forward took on its device."""

from __future__ import annotations

import time
from typing import Any

import torch


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
