"""Margins before deadlines, and the order of prompts by theirs. Pure."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

LEAST_MARGIN, FIRST_MARGIN, MOST_MARGIN = 0.03, 0.2, 0.4  # parts of the limit
LEAST_WIDER, MOST_WIDER, NARROWER = 0.05, 2.0, 0.9  # added parts of the limit, times the margin, times it
FIRST_QUIET_STEPS, QUIET_STEPS = 8, 64  # before the first missed deadline, and after it
NUM_OVERHEADS = 15
PATIENCE = 4.0  # limits on the time to first token after which a prompt goes before all younger ones


@dataclass(slots=True)
class Margin:
    """What a step leaves free of its budget: more after a missed deadline, less after a quiet stretch.

    It begins wide, since predictions are still poor, and narrows fast until the first missed deadline. From
    then on one deadline in 200 may be missed if it is to stay at 15 %.
    """

    part: float = FIRST_MARGIN
    _quiet: int = 0
    _quiet_steps: int = FIRST_QUIET_STEPS

    def missed(self, late_part: float) -> None:
        """A token came later than its limit, by this part of it, although its step was predicted to fit."""
        wider = min(self.part + max(late_part, LEAST_WIDER), self.part * MOST_WIDER)
        self.part, self._quiet = min(wider, MOST_MARGIN), 0
        self._quiet_steps = QUIET_STEPS

    def kept(self) -> None:
        """A step's tokens came in time."""
        self._quiet += 1
        if self._quiet == self._quiet_steps:
            self.part, self._quiet = max(self.part * NARROWER, LEAST_MARGIN), 0


@dataclass(slots=True)
class Overhead:
    """What passes between two steps' tokens beside the step: the median of the latest."""

    _latest_s: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_OVERHEADS))
    value_s: float = 0.0

    def seen(self, gap_s: float, step_s: float) -> None:
        """Tokens came `gap_s` after those before; the step took `step_s` of it."""
        self._latest_s.append(max(gap_s - step_s, 0.0))
        self.value_s = statistics.median(self._latest_s)


@dataclass(frozen=True, slots=True)
class WaitingPrompt:
    """A prompt in the queue: since when, and how long it is predicted to take."""

    arrived_s: float
    predicted_s: float


def order_by_slack(prompts: Sequence[WaitingPrompt], now_s: float, ttft_limit_s: float) -> list[int]:
    """Indices in the order to serve them.

    First those that have waited `PATIENCE` limits, the oldest first: so a prompt is overtaken only by ones
    that came within that time after it. Then those that can still keep the limit, the least slack first. Then
    the late ones, the oldest first.
    """

    def key(index: int) -> tuple[int, float]:
        prompt = prompts[index]
        waited = now_s - prompt.arrived_s
        if waited >= PATIENCE * ttft_limit_s:
            return 0, prompt.arrived_s
        slack = ttft_limit_s - waited - prompt.predicted_s
        return (1, slack) if slack >= 0 else (2, prompt.arrived_s)

    return sorted(range(len(prompts)), key=key)
