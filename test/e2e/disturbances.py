"""What happens on a real server beside the requests whose answers count: clients that go away, pauses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import httpx
import pytest

from workload import Ask, prompt, streamed

NUM_PAUSES = 4
NUM_ABORTED = 10
MANY_OUTPUTS = 1000  # so many that none has ended before its client goes away


async def pauses(client: httpx.AsyncClient) -> None:
    """Both kinds of pauses that lose no request."""
    for mode in ("retract", "in_place") * (NUM_PAUSES // 2):
        await asyncio.sleep(0.9)
        for path, body in (("/pause_generation", {"mode": mode}), ("/continue_generation", {})):
            reply = await client.post(path, json=body)
            assert reply.status_code == 200, reply.text


async def hang_ups(client: httpx.AsyncClient, adapters: Sequence[str | None] = (None,)) -> None:
    """Clients that go away at some moment, every second one from a stream; their requests are aborted."""
    rng = random.Random(5)
    for index in range(NUM_ABORTED):
        tokens, adapter = prompt(rng.randrange(200, 1500), 900 + index), adapters[index % len(adapters)]
        body = Ask(tokens, 0.0, MANY_OUTPUTS, adapter=adapter).body()
        await (leave_stream if index % 2 else leave_answer)(client, body, rng.uniform(0.05, 0.5))


async def aborts(client: httpx.AsyncClient, adapters: Sequence[str | None] = (None,)) -> None:
    """Requests that `/abort_request` ends at some moment, most of them while they wait."""
    rng = random.Random(6)
    for index in range(NUM_ABORTED):
        tokens, adapter = prompt(rng.randrange(200, 1500), 950 + index), adapters[index % len(adapters)]
        body = Ask(tokens, 0.0, MANY_OUTPUTS, adapter=adapter).body() | {"rid": f"aborted-{index}"}
        answer = asyncio.create_task(client.post("/generate", json=body))
        while not answer.done():  # an abort that overtakes its request is lost
            await asyncio.sleep(rng.uniform(0.05, 0.5))
            await client.post("/abort_request", json={"rid": body["rid"]})
        reply = await answer
        if reply.status_code != 400:  # SGLang's answer where the abort comes during a pause
            assert reply.json()["meta_info"]["finish_reason"]["type"] == "abort", reply.text


async def leave_answer(client: httpx.AsyncClient, body: dict[str, Any], patience_s: float) -> None:
    """Send a request and go away before it is answered."""
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/generate", json=body, timeout=httpx.Timeout(60, read=patience_s))


async def leave_stream(client: httpx.AsyncClient, body: dict[str, Any], patience_s: float) -> None:
    """Go away that long after the first token."""
    flowing = asyncio.Event()
    stream = asyncio.create_task(streamed(client, body, flowing))
    async with asyncio.timeout(120):
        await flowing.wait()
    await asyncio.sleep(patience_s)
    assert stream.cancel(), "it ended before its client went away"
    with suppress(asyncio.CancelledError):
        await stream
