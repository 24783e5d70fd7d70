"""Reads SGLang's event streams. httpx's own lines also end at U+0085 and U+2028, which may be in a text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import orjson

DATA = b"data: {"


async def lines(reply: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a stream as they come, without their ends."""
    rest = b""
    async for part in reply.aiter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line


async def events(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream as they come; `data: [DONE]` is none."""
    async for line in lines(reply):
        if (event := event_of(line)) is not None:
            yield event


def events_now(reply: httpx.Response) -> Iterator[dict[str, Any]]:
    """The same from a place without an event loop."""
    rest = b""
    for part in reply.iter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        yield from filter(None, map(event_of, whole))


def event_of(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds."""
    return orjson.loads(line[len(DATA) - 1 :]) if line.startswith(DATA) else None
