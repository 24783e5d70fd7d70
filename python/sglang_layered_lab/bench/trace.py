"""What a client saw of one request: raw times, nothing computed. Pure; JSON in and out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Arrival:
    """At `time_s` the client had `num_tokens` tokens of the request, this arrival's own included."""

    time_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """One request; all times are seconds since the run's zero, on the client's monotonic clock.

    `due_s` is when the arrival process wanted it sent and `sent_s` when the client sent it; the difference is
    the client's own lateness. `arrivals` grow in time and in tokens. `error` is set when it did not end as
    asked: its arrivals are then what came before.
    """

    request_id: str
    due_s: float
    sent_s: float
    prompt_tokens: int
    max_output_tokens: int
    arrivals: tuple[Arrival, ...]
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; times to a microsecond."""
        return {
            "id": self.request_id,
            "due_s": round(self.due_s, 6),
            "sent_s": round(self.sent_s, 6),
            "prompt_tokens": self.prompt_tokens,
            "max_output_tokens": self.max_output_tokens,
            "arrivals": [[round(each.time_s, 6), each.num_tokens] for each in self.arrivals],
            "error": self.error,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RequestTrace:
        """Read back what `to_json` gave."""
        return cls(
            request_id=values["id"],
            due_s=values["due_s"],
            sent_s=values["sent_s"],
            prompt_tokens=values["prompt_tokens"],
            max_output_tokens=values["max_output_tokens"],
            arrivals=tuple(Arrival(time_s, num_tokens) for time_s, num_tokens in values["arrivals"]),
            error=values["error"],
        )
