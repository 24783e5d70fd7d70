"""One clock for all ranks, and when each running request got its last token on it.

What rank 0 measured travels with the requests that SGLang broadcasts each step.

Clocks and step times differ between ranks and decisions must not. So every rank decides for itself, from
what rank 0 read: the time at the start of a step, and how long the steps took whose results were processed
since the last one.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np

from sglang_layered.core.pacing import Start
from sglang_layered.core.questions import Seconds
from sglang_layered.scheduler.results import Outcome


@dataclass(frozen=True, slots=True)
class Reading:
    """Rank 0's `time.monotonic()`, its times of processed steps, and once what a policy starts from."""

    now_s: float = 0.0
    durations_s: tuple[float, ...] = ()
    start: Start | None = None


class RankClock:
    """Collects durations on every rank; what is read is rank 0's, each duration once."""

    def __init__(self) -> None:
        self.latest = Reading()
        self.start: Start | None = None
        self._durations_s: list[float] = []

    def read(self, has_other_ranks: bool) -> Reading:
        """Rank 0's clock and step durations; each duration is returned once. A single rank is rank 0."""
        if not has_other_ranks:
            return self.publish()
        reading, self.latest = self.latest, Reading(self.latest.now_s)
        return reading

    def step_took(self, duration_s: float) -> None:
        """A step's results were processed."""
        self._durations_s.append(duration_s)

    def publish(self) -> Reading:
        """What this rank would tell the others."""
        reading = Reading(time.monotonic(), tuple(self._durations_s), self.start)
        self._durations_s.clear()
        self.start = None
        return reading


class LastTokenTimes:
    """Collects who gets a token from a step; from the next step's start on they have it.

    It is asked several times a step about every running request. Almost all of those got one at the step
    before, so these are one set with one time; only a request that left the set has a time of its own. In
    most steps not even the set changes: the list of those that were decoded is the one of the step before.
    (A plain loop over 256 requests took 0.15 ms a step.)

    Requests that finished or were retracted may stay in the set harmlessly: nobody asks for them.
    """

    def __init__(self) -> None:
        self._recent: set[Any] = set()  # got their last token at the same time
        self._recent_s = 0.0
        self._in_order: list[Any] = []  # those of the recent ones that decoded, in their batch's order
        self._began_last = False  # others are among the recent ones
        self._decoded: list[list[Any]] = []  # got their next token since the last step
        self._began: set[Any] = set()  # whose prompt was computed since then

    def forget(self) -> None:
        """Count no token that was collected and not marked."""
        self._decoded, self._began = [], set()

    def collect(self, outcomes: Sequence[Outcome]) -> None:
        """SGLang is about to process these."""
        for outcome in outcomes:
            if outcome.batch_at_launch.forward_mode.is_decode():
                self._decoded.append(list(outcome.batch_at_launch.reqs))
            else:
                self._began.update(outcome.batch_at_launch.reqs)

    def mark(self, now_s: float) -> float | None:
        """A step begins: all that was collected is there now. Returns the longest gap before such a token."""
        decoded, began = self._decoded, self._began
        if not decoded and not began:
            return None
        self.forget()
        if self._in_order and decoded == [self._in_order] and not began and not self._began_last:
            gap_s, self._recent_s = now_s - self._recent_s, now_s
            return gap_s
        longest_s = self._mark(set().union(*decoded), began, now_s)
        self._in_order, self._began_last = decoded[0] if len(decoded) == 1 else [], bool(began)
        return longest_s

    def _mark(self, decoded: set[Any], began: set[Any], now_s: float) -> float | None:
        recent = self._recent
        others = decoded - recent
        before_s = self._times(others, len(others) < len(decoded))
        if others or len(decoded) < len(recent):
            for req in recent - decoded:
                req.layered_last_token_s = self._recent_s
        self._recent, self._recent_s = decoded | began, now_s
        return now_s - min(before_s) if before_s else None

    def oldest_after(self, reqs: Sequence[Any], after_s: float) -> float | None:
        """The earliest last token of these requests that came after `after_s`."""
        if reqs and (reqs == self._in_order or self._recent.issuperset(reqs)):
            return self._recent_s if self._recent_s > after_s else None
        others = set(reqs) - self._recent
        times_s = self._times(others, len(others) < len(reqs))
        return min((time_s for time_s in times_s if time_s > after_s), default=None)

    def last_of(self, reqs: Sequence[Any]) -> Seconds | float:
        """When each of these got its last token, NaN before the first; a number where all did together."""
        if reqs == self._in_order or self._recent.issuperset(reqs):
            return self._recent_s
        recent, recent_s = self._recent, self._recent_s
        return np.array(
            [recent_s if req in recent else getattr(req, "layered_last_token_s", nan) for req in reqs]
        )

    def _times(self, others: set[Any], has_recent: bool) -> list[float]:
        """The different times of these, and of the recent ones if there are any among those asked for.

        One that decodes from before the policy came into force has none.
        """
        times_s = [self._recent_s] if has_recent else []
        return times_s + [req.layered_last_token_s for req in others if hasattr(req, "layered_last_token_s")]
