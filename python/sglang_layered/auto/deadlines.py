"""Margins before deadlines, and the order of prompts by theirs. Pure."""

import statistics
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

LEAST_MARGIN, MOST_MARGIN = 0.02, 0.3  # parts of the limit
LEAST_WIDER = 0.02  # part of the limit that a missed deadline adds
NARROWER, QUIET_STEPS = 0.9, 64  # times the margin, after so many steps in time
FIRST_FACTOR = 1.25  # times a prediction, until `FEW_SURPRISES` were seen
MOST_FACTOR = 1.7  # times a prediction: more is no surprise but a pause
FEW_SURPRISES, NUM_SURPRISES, ONE_IN = 32, 400, 50
NUM_OVERHEADS = 15
PATIENCE = 4.0  # limits on the time to first token after which a prompt goes before all younger ones


@dataclass(slots=True)
class Surprise:
    """How many times their prediction steps take, all but one in `ONE_IN`: of the latest with prompt rows.

    It is learned from every such step, whatever limit was in force. As long as little was seen only the later
    half counts, since the first predictions are poor.
    """

    _latest: deque[float] = field(default_factory=deque)
    _in_order: list[float] = field(default_factory=list)
    _num_seen: int = 0

    @classmethod
    def resumed(cls, ratios: Sequence[float]) -> "Surprise":
        """What another one had seen, as `state` gave it: all of it counts."""
        found = cls(_num_seen=len(ratios))
        for ratio in ratios:
            found.seen(ratio)
        return found

    def state(self) -> list[float]:
        """The ratios that count, oldest first."""
        return list(self._latest)

    def seen(self, ratio: float) -> None:
        """A step took `ratio` times its prediction. Above MOST_FACTOR it was a pause, which is ignored."""
        if not ratio <= MOST_FACTOR:
            return
        self._num_seen += 1
        self._latest.append(ratio)
        insort(self._in_order, ratio)
        if len(self._latest) > min(max(self._num_seen // 2, FEW_SURPRISES), NUM_SURPRISES):
            del self._in_order[bisect_left(self._in_order, self._latest.popleft())]

    @property
    def factor(self) -> float:
        """At least 1."""
        count = len(self._in_order)
        if count < FEW_SURPRISES:
            return FIRST_FACTOR
        return max(self._in_order[-max(count // ONE_IN, 1)], 1.0)


@dataclass(slots=True)
class Margin:
    """What a step leaves free besides: more after a missed deadline, less after a quiet stretch."""

    part: float = LEAST_MARGIN
    _quiet: int = 0

    def missed(self, late_part: float) -> None:
        """A token came later than its limit, by this part of it, although its step was predicted to fit."""
        self.part, self._quiet = min(self.part + max(late_part, LEAST_WIDER), MOST_MARGIN), 0

    def kept(self) -> None:
        """A step's tokens came in time."""
        self._quiet += 1
        if self._quiet == QUIET_STEPS:
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
