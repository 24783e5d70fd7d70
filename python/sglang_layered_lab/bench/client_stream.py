"""One request's course while it runs: raw bytes in, arrival times noted. It opens no connection.

Every event repeats all tokens so far, so a full parse of each would take most of the client's time. Only the
running count is looked for, from the end; the last event alone is parsed, once the stream is over. The bytes
`"completion_tokens":` are a key wherever they stand: in a JSON string the quotes would be escaped.
"""

import re
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import orjson

from sglang_layered_lab.bench.client_data import PlannedRequest
from sglang_layered_lab.bench.trace import Arrival, RequestTrace

COUNT_KEY = b'"completion_tokens":'
COUNT = re.compile(rb"\s*(\d+)")
EVENT_END = b"\n\n"
DATA = b"data: "
DONE = b"data: [DONE]"


class EventScan:
    """SGLang's event stream of one response, from first byte to last, however it is cut into reads."""

    def __init__(self) -> None:
        self._rest = b""  # of an event whose end has not come
        self._last = b""  # the read with the last count, and whole events without one after it
        self._num_tokens = 0
        self._fell_to: int | None = None

    def feed(self, data: bytes) -> int | None:
        """Tokens that the request has after this read; None if it ends no event with a count."""
        if self._rest:
            data = self._rest + data
        end = data.rfind(EVENT_END)
        if end < 0:
            self._rest = data
            return None
        end += len(EVENT_END)
        self._rest = data[end:]
        at = data.rfind(COUNT_KEY, 0, end)
        found = COUNT.match(data, at + len(COUNT_KEY), end) if at >= 0 else None
        if found is None:
            self._last += data[:end]
            return None
        self._last = data[:end]
        count = int(found[1])
        if count < self._num_tokens:
            self._fell_to = count
        self._num_tokens = count
        return count

    @property
    def prompt_tokens(self) -> int | None:
        """The server's count of the prompt's tokens; None before its first event."""
        value = self._meta().get("prompt_tokens")
        return value if isinstance(value, int) else None

    def fault(self, max_output_tokens: int) -> str | None:
        """Why the stream, which is over, is not what was asked for; None if it is."""
        last = self._last_event()
        if "error" in last:
            return f"the server says: {_message(last['error'])}"
        reason = self._meta().get("finish_reason")
        if isinstance(reason, dict) and reason.get("type") == "abort":
            return f"the server aborted it: {_message(reason)}"
        if self._fell_to is not None:
            return f"the server's running token count fell to {self._fell_to}"
        if self._num_tokens != max_output_tokens:
            return f"{self._num_tokens} of {max_output_tokens} tokens came"
        if not self._last.endswith(DONE + EVENT_END):
            return "the stream ended without [DONE]"
        return None

    def _last_event(self) -> dict[str, Any]:
        for event in reversed(self._last.split(EVENT_END)):
            if event.startswith(DATA + b"{"):
                try:
                    value = orjson.loads(event[len(DATA) :])
                except orjson.JSONDecodeError:
                    return {"error": f"an event that is no JSON: {event[:80]!r}"}
                return value if isinstance(value, dict) else {}
        return {}

    def _meta(self) -> dict[str, Any]:
        meta = self._last_event().get("meta_info")
        return meta if isinstance(meta, dict) else {}


def _message(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]


@dataclass(slots=True)
class Stream:
    """A request's course; `due_s` since the zero, `sent_s` and `times_s` on the monotonic clock."""

    request: PlannedRequest
    body: bytes
    due_s: float = 0.0
    sent_s: float | None = None
    is_done: bool = False
    error: str | None = None
    scan: EventScan = field(default_factory=EventScan)
    times_s: "array[float]" = field(default_factory=lambda: array("d"))
    counts: "array[int]" = field(default_factory=lambda: array("q"))

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
        """What was seen; one that was never sent has the moment when the run gave up as `sent_s`.

        One that was sent before the zero, in the background, was due then.
        """
        sent_s = ended_s if self.sent_s is None else self.sent_s - zero_s
        times = (time_s - zero_s for time_s in self.times_s)
        prompt = self.request.prompt
        return RequestTrace(
            request_id=self.request.request_id,
            due_s=self.due_s if self.sent_s is None else min(self.due_s, sent_s),
            sent_s=sent_s,
            prompt_tokens=(self.scan.prompt_tokens or 0) if isinstance(prompt, str) else len(prompt),
            max_output_tokens=self.request.max_output_tokens,
            arrivals=tuple(Arrival(*each) for each in zip(times, self.counts, strict=True)),
            error=self.error,
        )
