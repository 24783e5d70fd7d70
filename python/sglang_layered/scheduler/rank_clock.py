"""One clock for all ranks: what rank 0 measured travels with the requests that SGLang broadcasts each step.

Clocks and step times differ between ranks and decisions must not. So every rank decides for itself, from
what rank 0 read: the time at the start of a step, and how long the steps took whose results were processed
since the last one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sglang_layered.core.pacing import Start


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
