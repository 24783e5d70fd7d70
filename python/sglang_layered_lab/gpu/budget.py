"""A hard limit on the time of one stage: the host cuts a command off, and then nothing is written."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class BudgetSpent(BaseException):
    """The stage's time is up. No Exception, so that no handler of failures takes it for one."""


class Budget:
    """What is left of a stage's time, in seconds."""

    def __init__(self, total_s: float) -> None:
        self.total_s = total_s
        self._end_s = time.monotonic() + total_s

    @property
    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(self._end_s - time.monotonic(), 0.0)

    def need(self, num_seconds: float) -> None:
        """Do not begin what takes longer than is left."""
        if self.left_s < num_seconds:
            raise BudgetSpent

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Interrupt whatever runs in the main thread when the time is up; `with` blocks still clean up."""

        def stop(number: int, frame: FrameType | None) -> None:
            raise BudgetSpent

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(self.left_s, 0.001))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
