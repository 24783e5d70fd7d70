"""Streams that decode beside the measured requests: begun before the zero, broken off at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.client_stream import Stream
from sglang_layered_lab.bench.trace import RequestTrace

DECODING = 2  # a stream decodes when it has its second token
POLL_S = 0.01


class Background:
    """The streams of one run; it may be empty. They have begun when each has so many tokens."""

    def __init__(self, streams: Sequence[Stream], tokens_before: int = DECODING) -> None:
        self._streams, self._tokens_before = list(streams), tokens_before
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, send: Callable[[Stream], Coroutine[Any, Any, None]], timeout_s: float) -> None:
        """Send all; return when each of them has begun.

        Raises:
            BenchError: one ended before, or none of this happened in time.
        """
        self._tasks = [asyncio.create_task(send(stream)) for stream in self._streams]
        try:
            await asyncio.wait_for(self._until_decoding(), timeout_s)
        except asyncio.TimeoutError:
            await end_tasks(self._tasks)
            raise BenchError(f"the background does not decode after {timeout_s:g} s") from None
        except BenchError:
            await end_tasks(self._tasks)
            raise

    async def _until_decoding(self) -> None:
        while any(stream.num_tokens < self._tokens_before for stream in self._streams):
            self._check()
            await asyncio.sleep(POLL_S)

    def new_zero(self, moved_s: float) -> None:
        """The run's zero has moved by so much since the streams were sent."""
        for stream in self._streams:
            stream.due_s -= moved_s
            if stream.sent_s is not None:
                stream.sent_s -= moved_s

    async def end(self) -> None:
        """Break all streams off.

        Raises:
            BenchError: one had ended by itself, so that not all of them ran all the time.
        """
        try:
            self._check()
        finally:
            await end_tasks(self._tasks)

    def traces(self, zero_s: float, ended_s: float) -> tuple[RequestTrace, ...]:
        """What was seen of each."""
        return tuple(stream.trace(zero_s, ended_s) for stream in self._streams)

    def _check(self) -> None:
        for stream in self._streams:
            if stream.is_done:
                why = stream.error or (
                    f"all its {stream.num_tokens} tokens had come; give load.background.output_tokens more"
                )
                raise BenchError(f"a background stream ended before the load did: {why}")


async def end_tasks(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait for their ends."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
