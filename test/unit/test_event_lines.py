"""Event streams as the tests' clients read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
from event_lines import events, events_now, lines

STREAM = 'data: {"text":"a\u0085b\u2028c"}\n\ndata: {"n":1}\n\ndata: [DONE]\n\n'.encode()
EVENTS = [{"text": "a\u0085b\u2028c"}, {"n": 1}]


class InParts(httpx.AsyncByteStream, httpx.SyncByteStream):
    """Cut inside of events and of characters."""

    def __iter__(self) -> Iterator[bytes]:
        yield from (STREAM[at : at + 7] for at in range(0, len(STREAM), 7))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


def reply() -> httpx.Response:
    return httpx.Response(200, stream=InParts())


def test_a_line_ends_where_its_bytes_say_so() -> None:
    async def read() -> None:
        assert [event async for event in events(reply())] == EVENTS
        assert b"data: [DONE]" in [line async for line in lines(reply())]

    asyncio.run(read())
    assert list(events_now(reply())) == EVENTS
