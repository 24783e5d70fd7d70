"""Reads SGLang's event streams. httpx's own lines also end at U+0085 and U+2028, which may be in a text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import orjson

DATA = b"data: {"


async def events(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream as they come; `data: [DONE]` is none."""
    rest = b""
    async for part in reply.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for event in _objects(lines):
            yield event


def events_now(reply: httpx.Response) -> Iterator[dict[str, Any]]:
    """The same from a place without an event loop."""
    rest = b""
    for part in reply.iter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        yield from _objects(lines)


def _objects(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    return (orjson.loads(line[len(DATA) - 1 :]) for line in lines if line.startswith(DATA))
