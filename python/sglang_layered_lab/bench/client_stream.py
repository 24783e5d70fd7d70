"""One request's course while it runs: raw bytes in, arrival times noted. It opens no connection."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field

from sglang_layered_lab.bench.client_data import PlannedRequest
from sglang_layered_lab.bench.client_events import EventScan
from sglang_layered_lab.bench.trace import Arrival, RequestTrace


@dataclass(slots=True)
class Stream:
    """A request's course; `due_s` and `sent_s` since the zero, `times_s` on the monotonic clock."""

    request: PlannedRequest
    body: bytes
    due_s: float = 0.0
    sent_s: float | None = None
    is_done: bool = False
    error: str | None = None
    scan: EventScan = field(default_factory=EventScan)
    times_s: array[float] = field(default_factory=lambda: array("d"))
    counts: array[int] = field(default_factory=lambda: array("q"))

    @property
    def num_tokens(self) -> int:
        """Tokens noted so far."""
        return self.counts[-1] if self.counts else 0

    def read(self, data: bytes) -> None:
        """Note what came."""
        now_s = time.monotonic()
        num_tokens = self.scan.feed(data)
        if num_tokens is not None and num_tokens > self.num_tokens:
            self.times_s.append(now_s)
            self.counts.append(num_tokens)

    def trace(self, zero_s: float, ended_s: float) -> RequestTrace:
        """What was seen; one that was never sent has the moment when the run gave up as `sent_s`."""
        times = (time_s - zero_s for time_s in self.times_s)
        prompt = self.request.prompt
        return RequestTrace(
            request_id=self.request.request_id,
            due_s=self.due_s,
            sent_s=ended_s if self.sent_s is None else self.sent_s,
            prompt_tokens=(self.scan.prompt_tokens or 0) if isinstance(prompt, str) else len(prompt),
            max_output_tokens=self.request.max_output_tokens,
            arrivals=tuple(Arrival(*each) for each in zip(times, self.counts, strict=True)),
            error=self.error,
        )
