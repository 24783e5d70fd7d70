"""Clients of every kind on one server, and how each of them ended: with an answer or with an error."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from workload import Ask, prompt, streamed

LONG = 4000  # tokens of a prompt that takes a while
UNDER_WAY_S = 0.3  # by then it is in flight
GIVE_UP_S = 90.0


@dataclass(frozen=True)
class Ending:
    """How a client ended and when, on the clock of `time.monotonic()`."""

    client: str
    is_error: bool
    detail: str
    time_s: float


def survivors(session: int) -> list[str]:
    """Processes of a server's session that are still there; a zombie is only a number."""
    found = []
    for process in psutil.process_iter(["pid", "name", "status"]):
        try:
            same = os.getsid(process.info["pid"]) == session
        except (ProcessLookupError, PermissionError):
            continue
        if same and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(f"{process.info['pid']} {process.info['name']}")
    return found


async def _whole(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    reply = await client.post(path, json=body)
    reply.raise_for_status()
    return f"{reply.status_code}"


async def _ending(client: str, call: Awaitable[str]) -> Ending:
    try:
        return Ending(client, False, await call, time.monotonic())
    except (httpx.HTTPError, OSError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
            raise  # the request itself was wrong
        return Ending(client, True, repr(error), time.monotonic())


async def _crowd(url: str, num_outputs: int, trigger: Callable[[], Awaitable[Any]]) -> list[Ending]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=GIVE_UP_S, limits=limits, trust_env=False) as client:
        flowing = [asyncio.Event(), asyncio.Event()]
        bodies = [Ask(prompt(20 + index, 700 + index), 0.0, num_outputs).body() for index in range(2)]
        streams = [streamed(client, *pair) for pair in zip(bodies, flowing, strict=True)]
        endings = [asyncio.create_task(_ending("stream", stream)) for stream in streams]
        for event in flowing:
            await asyncio.wait_for(event.wait(), GIVE_UP_S)
        openai = {"model": "default", "prompt": "once upon", "max_tokens": num_outputs, "ignore_eos": True}
        long = Ask(prompt(LONG, 702), 0.0, num_outputs).body()
        for name, path, body in (("openai", "/v1/completions", openai), ("long", "/generate", long)):
            endings.append(asyncio.create_task(_ending(name, _whole(client, path, body))))
        await asyncio.sleep(UNDER_WAY_S)
        await trigger()
        return await asyncio.gather(*endings)


def crowd(url: str, num_outputs: int, trigger: Callable[[], Awaitable[Any]]) -> list[Ending]:
    """Two streams flow, an OpenAI client waits and a long prompt is on its way when `trigger` is called."""
    return asyncio.run(_crowd(url, num_outputs, trigger))
