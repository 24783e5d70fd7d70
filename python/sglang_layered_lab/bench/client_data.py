"""What the client is given and what it gives back; its clock, and what could stop its event loop. No HTTP."""

import asyncio
import contextlib
import fcntl
import os
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from sglang_layered_lab.bench.trace import RequestTrace

LAG_PERIOD_S = 0.01
MIN_FILES = 1024
DECODING = 2  # a stream decodes when it has its second token


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send: greedy, and to its last token. `prompt` is token ids, or text.

    Open loop: `due_s` is when to send it, seconds since the run's zero. Closed loop: not before that.
    `sampling` is added to SGLang's sampling parameters.
    """

    request_id: str
    due_s: float
    prompt: Sequence[int] | str
    max_output_tokens: int
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> bytes:
        """What is posted."""
        prompt = {"text": self.prompt} if isinstance(self.prompt, str) else {"input_ids": list(self.prompt)}
        sampling = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": self.max_output_tokens}
        asked = {"rid": self.request_id, "stream": True, "sampling_params": sampling | dict(self.sampling)}
        return orjson.dumps(prompt | asked)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. `background` are the tokens of each background stream, in their order."""

    now_s: float
    num_requests: int  # that the run will send
    num_sent: int
    num_open: int
    num_done: int
    num_failed: int
    num_tokens: int
    background: tuple[int, ...] = ()


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


@dataclass(frozen=True, slots=True)
class ClientReport:
    """What the client itself took. Lateness is sent - due; lag is that of `LoopLag`; None without samples.

    `core_share` is CPU time over wall time, of the whole process: near 1 it was too slow and its times are
    not to be trusted.
    """

    cpu_s: float
    core_share: float
    lateness_p99_s: float | None
    lateness_max_s: float | None
    lag_p99_s: float | None
    lag_max_s: float | None
    max_open_streams: int


@dataclass(frozen=True, slots=True)
class ClientResult:
    """Traces in the order of the requests, one each whatever happened; the client's report; the moments.

    Traces of the background are of streams that were broken off at the end, with what came until then.
    """

    traces: tuple[RequestTrace, ...]
    report: ClientReport
    times: RunTimes
    background: tuple[RequestTrace, ...] = ()


def rounded(told: ClientReport | RunTimes) -> dict[str, Any]:
    """JSON values; times to a microsecond."""
    return {key: None if value is None else round(value, 6) for key, value in asdict(told).items()}


class RunClock:
    """Made when the client is loaded and connected; `start` sets the zero; seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.zero_s = self._ready_s = time.monotonic()
        self._zero_unix_s = time.time()

    def start(self) -> None:
        """The zero is now."""
        self.zero_s, self._zero_unix_s = time.monotonic(), time.time()

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
