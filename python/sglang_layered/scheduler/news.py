"""One clock for all ranks: what rank 0 measured travels with the requests that SGLang broadcasts each step.

Clocks and step times differ between ranks and decisions must not. So every rank decides for itself, from
what rank 0 read: the time at the start of a step, and how long the steps took whose results were processed
since the last one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any

from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver

from sglang_layered.core.pacing import Start


@dataclass(frozen=True, slots=True)
class News:
    """Rank 0's `time.monotonic()`, its times of processed steps, and once what to start from."""

    now_s: float = 0.0
    durations_s: tuple[float, ...] = ()
    start: Start | None = None


class NewsDesk:
    """Collects durations on every rank and hands out rank 0's news, each durations once."""

    def __init__(self) -> None:
        self.latest = News()
        self.start: Start | None = None
        self._durations_s: list[float] = []

    def take(self, has_other_ranks: bool) -> News:
        """The news of this step; a single rank makes them itself."""
        if not has_other_ranks:
            return self.publish()
        news, self.latest = self.latest, News(self.latest.now_s)
        return news

    def step_took(self, duration_s: float) -> None:
        """A step's results were processed."""
        self._durations_s.append(duration_s)

    def publish(self) -> News:
        """What this rank would tell the others."""
        news = News(time.monotonic(), tuple(self._durations_s), self.start)
        self._durations_s.clear()
        self.start = None
        return news


class NewsReceiver(SchedulerRequestReceiver):
    """SGLang's receiver whose broadcast carries the news of rank 0 as its last item.

    Upstream: srt/managers/scheduler_components/request_receiver.py, `_broadcast_reqs_across_ranks`.
    """

    __slots__ = ("desk",)
    desk: NewsDesk

    @classmethod
    def of(cls, receiver: SchedulerRequestReceiver, desk: NewsDesk) -> NewsReceiver:
        """The same receiver with a desk."""
        found = cls(**{item.name: getattr(receiver, item.name) for item in fields(receiver)})
        object.__setattr__(found, "desk", desk)
        return found

    def _broadcast_reqs_across_ranks(self, recv_reqs: list[Any] | None) -> list[Any]:
        mine = self.desk.publish()
        with_news = None if recv_reqs is None else [*recv_reqs, mine]
        *reqs, self.desk.latest = super()._broadcast_reqs_across_ranks(with_news)
        return reqs
