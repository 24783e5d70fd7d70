"""Sends planned requests to SGLang's `/generate` and notes when their tokens came; computes no metric.

aiohttp on uvloop, since the client must not be slower than what it measures (httpx takes four times as long a
token); `test/bench_checks/client_honesty.py` measures its errors.
A request's time starts before its connection is made, and a read's time is noted when the client's task gets
it: what the client itself takes is in the times, never taken off. Arrivals are kept in arrays and garbage is
collected after the run, so that no collection stops it.
"""

import asyncio
import contextlib
import gc
import logging
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import aiohttp
import numpy as np
import uvloop

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.client_data import (
    DECODING,
    ClientReport,
    ClientResult,
    LoopLag,
    PlannedRequest,
    Progress,
    RunClock,
    reserve_files,
)
from sglang_layered_lab.bench.client_stream import Stream

logger = logging.getLogger(__name__)

PROGRESS_S = 0.25
POLL_S = 0.01
KEEPALIVE_S = 2.0  # below the 5 s after which SGLang drops an idle connection
CONNECT_TIMEOUT_S = 10.0


class BenchClient:
    """One run against one server; an asynchronous context manager that closes all connections.

    Inside it the client is loaded (bodies are built) and connected (the server has answered).
    """

    def __init__(
        self,
        base_url: str,
        requests: Sequence[PlannedRequest],
        on_progress: Callable[[Progress], None] | None = None,
        background: Sequence[PlannedRequest] = (),
        tokens_before: int = DECODING,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._url = f"{self._base_url}/generate"
        self._streams = [Stream(request, request.body(), request.due_s) for request in requests]
        self._background = [Stream(each, each.body()) for each in background]
        self._tokens_before = tokens_before
        self._tasks: list[asyncio.Task[None]] = []
        self._on_progress = on_progress
        self._num_open = self._max_open = 0
        self._lag = LoopLag()

    async def __aenter__(self) -> "BenchClient":
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers={"Content-Type": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        reserve_files()
        try:
            async with self._session.get(f"{self._base_url}/v1/models") as response:
                response.raise_for_status()
        except BaseException as error:
            await self._session.close()
            if not isinstance(error, aiohttp.ClientError | OSError):
                raise
            problem = f"no SGLang server at {self._base_url} ({error}); start it or give its URL"
            raise BenchError(problem) from error
        self.clock = RunClock()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end_tasks()
        await self._session.close()

    async def start_background(self, timeout_s: float) -> None:
        """Send the background streams; return when each of them has its `tokens_before`.

        Raises:
            BenchError: one ended before, or none of this happened in time.
        """
        for stream in self._background:
            self._begin(self._send(stream))
        end_s = time.monotonic() + timeout_s
        while any(stream.num_tokens < self._tokens_before for stream in self._background):
            self._check_background()
            if time.monotonic() > end_s:
                raise BenchError(f"the background does not decode after {timeout_s:g} s")
            await asyncio.sleep(POLL_S)

    async def run(self, *, timeout_s: float, num_clients: int | None = None) -> ClientResult:
        """Send all and wait for their ends, `timeout_s` at most.

        With `num_clients` it is a closed loop of so many, each sending its next request when the one before
        has ended (which is the next one's `due_s`); else an open loop.
        """
        start_cpu_s = time.process_time()
        self.clock.start()
        load = self._open_loop() if num_clients is None else self._closed_loop(num_clients)
        sending = self._begin(load)
        for watcher in (self._lag.watch(), self._tell()):
            self._begin(watcher)
        try:
            with _no_collections():
                await asyncio.wait([sending], timeout=timeout_s)
                if sending.done():
                    sending.result()
            self._check_background()
        finally:
            await self._end_tasks()
        cpu_s = time.process_time() - start_cpu_s
        for stream in self._streams:
            if not stream.is_done:
                what = "not sent" if stream.sent_s is None else "no end"
                stream.error = f"{what} within the {timeout_s:g} s that the run may take"
        return self._result(cpu_s)

    async def _open_loop(self) -> None:
        sends = []
        for stream in self._in_order():
            await self.clock.sleep_until(stream.due_s)
            sends.append(self._begin(self._send(stream)))
        await asyncio.gather(*sends)

    async def _closed_loop(self, num_clients: int) -> None:
        waiting = iter(self._in_order())
        await asyncio.gather(*[self._begin(self._one_client(waiting)) for _ in range(num_clients)])

    async def _one_client(self, waiting: Iterator[Stream]) -> None:
        for stream in waiting:
            stream.due_s = max(stream.due_s, self.clock.now_s())
            await self.clock.sleep_until(stream.due_s)
            await self._send(stream)

    async def _send(self, stream: Stream) -> None:
        stream.sent_s = time.monotonic()
        self._num_open += 1
        self._max_open = max(self._max_open, self._num_open)
        try:
            async with self._session.post(self._url, data=stream.body) as response:
                if response.status != 200:
                    stream.error = f"HTTP status {response.status}: {(await response.text())[:200]}"
                else:
                    async for data in response.content.iter_any():
                        stream.read(data)
                    stream.error = stream.scan.fault(stream.request.max_output_tokens)
        except Exception as error:  # whatever it is, it must not lose the other requests
            stream.error = f"broken after {stream.num_tokens} tokens: {type(error).__name__} {error}".rstrip()
        finally:
            self._num_open -= 1
        stream.is_done = True  # a cancelled one does not get here

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._tasks.append(asyncio.create_task(work))
        return self._tasks[-1]

    async def _end_tasks(self) -> None:
        """Cancel whatever still runs and wait for its end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _check_background(self) -> None:
        """Refuse a stream that has ended by itself: then not all of them ran all the time."""
        for stream in self._background:
            if stream.is_done:
                why = stream.error or (
                    f"all its {stream.num_tokens} tokens had come; give load.background.output_tokens more"
                )
                raise BenchError(f"a background stream ended before the load did: {why}")

    async def _tell(self) -> None:
        while self._on_progress is not None:
            await asyncio.sleep(PROGRESS_S)
            try:
                self._on_progress(self._progress())
            except Exception:
                logger.exception("Progress is no longer shown; the run goes on")
                return

    def _in_order(self) -> list[Stream]:
        return sorted(self._streams, key=lambda stream: stream.due_s)

    def _progress(self) -> Progress:
        return Progress(
            now_s=self.clock.now_s(),
            num_requests=len(self._streams),
            num_sent=sum(stream.sent_s is not None for stream in self._streams),
            num_open=self._num_open,
            num_done=sum(stream.is_done for stream in self._streams),
            num_failed=sum(stream.error is not None for stream in self._streams),
            num_tokens=sum(stream.num_tokens for stream in self._streams),
            background=tuple(stream.num_tokens for stream in self._background),
        )

    def _result(self, cpu_s: float) -> ClientResult:
        zero_s = self.clock.zero_s
        last_s = max((stream.times_s[-1] for stream in self._streams if stream.times_s), default=None)
        times = self.clock.times(None if last_s is None else last_s - zero_s)
        late_s = [each.sent_s - zero_s - each.due_s for each in self._streams if each.sent_s is not None]
        report = ClientReport(
            cpu_s=cpu_s,
            core_share=cpu_s / times.ended_s,
            lateness_p99_s=_p99(late_s),
            lateness_max_s=max(late_s, default=None),
            lag_p99_s=_p99(self._lag.samples_s),
            lag_max_s=max(self._lag.samples_s, default=None),
            max_open_streams=self._max_open,
        )
        traces = tuple(stream.trace(zero_s, times.ended_s) for stream in self._streams)
        background = tuple(stream.trace(zero_s, times.ended_s) for stream in self._background)
        return ClientResult(traces, report, times, background)


def run_client(
    base_url: str,
    requests: Sequence[PlannedRequest],
    *,
    timeout_s: float,
    num_clients: int | None = None,
    on_ready: Callable[[], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    background: Sequence[PlannedRequest] = (),
    tokens_before: int = DECODING,
) -> ClientResult:
    """A whole run, on uvloop. `on_ready` is called between connecting and the zero, and may block.

    `background` are streams that decode from before the zero until all requests have ended, and are then
    broken off; they have to be asked for more tokens than come in that time. At the zero each of them has
    `tokens_before` tokens.

    Ctrl-C closes all connections, which makes the server abort the requests, and is raised again.

    Raises:
        BenchError: no server answers, or a background stream ends by itself.
    """

    async def connected() -> ClientResult:
        async with BenchClient(base_url, requests, on_progress, background, tokens_before) as client:
            await client.start_background(timeout_s)
            if on_ready is not None:
                on_ready()
            return await client.run(timeout_s=timeout_s, num_clients=num_clients)

    return uvloop.run(connected())


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _p99(samples: "Sequence[float] | array[float]") -> float | None:
    return float(np.quantile(np.asarray(samples), 0.99)) if len(samples) else None
