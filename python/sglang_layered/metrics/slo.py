"""Did a request meet its limits: TTFT, and every gap between its tokens. Pure; the caller has the clock.

Times are of the scheduler, in seconds of one monotonic clock; docs/metrics.md says where they are taken.
"""

from dataclasses import dataclass
from typing import Literal

Slo = Literal["ttft", "tbt", "both"]


@dataclass(frozen=True, slots=True)
class SloLimits:
    """The limits in force; None means that there is none, and every request meets it."""

    ttft_s: float | None = None
    tbt_s: float | None = None

    def verdicts(self, timing: "RequestTiming") -> dict[Slo, bool]:
        """Which limits a finished request met; only limits that are set, and `both` when both are."""
        met: dict[Slo, bool] = {}
        if self.ttft_s is not None:
            met["ttft"] = timing.ttft_s is not None and timing.ttft_s <= self.ttft_s
        if self.tbt_s is not None:
            met["tbt"] = timing.worst_gap_s <= self.tbt_s
        if len(met) == 2:
            met["both"] = all(met.values())
        return met


@dataclass(slots=True)
class RequestTiming:
    """What is kept of one request: its worst gap, when its newest token came, and if it was counted."""

    num_tokens: int = 0
    ttft_s: float | None = None
    worst_gap_s: float = 0.0
    newest_s: float = 0.0
    is_counted: bool = False

    def heard(self, num_tokens: int, now_s: float, arrival_s: float) -> None:
        """The request has so many tokens now; several at once came without a gap between them."""
        if num_tokens <= self.num_tokens:
            return
        if self.num_tokens == 0:
            self.ttft_s = now_s - arrival_s
        elif now_s - self.newest_s > self.worst_gap_s:
            self.worst_gap_s = now_s - self.newest_s
        self.num_tokens, self.newest_s = num_tokens, now_s
