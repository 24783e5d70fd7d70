"""The client's clock: the run's zero, the energy window, what could stop the event loop. It knows no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from array import array
from dataclasses import asdict, dataclass
from typing import Any

LAG_PERIOD_S = 0.01
MIN_FILES = 1024


@dataclass(frozen=True, slots=True)
class RunTimes:
    """Moments of a run in seconds since its zero; the zero itself on the monotonic clock and since 1970.

    `ready_s` (never above 0): the requests were built and the server had answered. `last_token_s`: the last
    token of all, None if none came. The energy window is [ready_s, last_token_s].
    """

    zero_monotonic_s: float
    zero_unix_s: float
    ready_s: float
    last_token_s: float | None
    ended_s: float

    def to_json(self) -> dict[str, Any]:
        """JSON values; times to a microsecond."""
        return {key: None if value is None else round(value, 6) for key, value in asdict(self).items()}


class RunClock:
    """Made when the client is loaded and connected; `start` sets the zero; seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.zero_s = self._ready_s = time.monotonic()
        self._zero_unix_s = time.time()

    def start(self) -> float:
        """The zero is now; return by how many seconds it moved."""
        before_s = self.zero_s
        self.zero_s, self._zero_unix_s = time.monotonic(), time.time()
        return self.zero_s - before_s

    def now_s(self) -> float:
        """Seconds since the zero."""
        return time.monotonic() - self.zero_s

    async def sleep_until(self, due_s: float) -> None:
        """Return at `due_s` or somewhat later, never before: timers are rounded to milliseconds."""
        while (left_s := due_s - self.now_s()) > 0:
            await asyncio.sleep(left_s)

    def times(self, last_token_s: float | None) -> RunTimes:
        """The run ends now."""
        return RunTimes(
            self.zero_s, self._zero_unix_s, self._ready_s - self.zero_s, last_token_s, self.now_s()
        )


class LoopLag:
    """How late a task wakes that asks to be woken every 10 ms.

    A timer's rounding (up to 1 ms) is in it. A lag bounds how late an arrival can have been noted.
    """

    def __init__(self) -> None:
        self.samples_s = array("d")

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            due_s = time.monotonic() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            self.samples_s.append(max(time.monotonic() - due_s, 0.0))


def reserve_files() -> None:
    """Have the kernel enlarge the table of open files now: under load that takes some 10 ms."""
    with (
        contextlib.suppress(OSError),
        open(os.devnull) as null,
    ):  # OSError: a low limit; then it grows by itself
        os.close(fcntl.fcntl(null, fcntl.F_DUPFD, MIN_FILES - 1))
