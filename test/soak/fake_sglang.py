"""A server without a model that a soak takes for SGLang: it answers by a rule, and can be at fault."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import orjson
from aiohttp import web

Fault = Literal["hang", "late token", "late steps", "wrong token", "leak"]
STEP_S = 0.002
LATE_S, STEPS_LATE = 0.3, 3  # by then the client knows that its abort was read
LEAK = 9999  # more than sessions whose turn was aborted may hold
FAULTY_FROM = 5  # the first request that is hit by a fault


def right_answer(prompt: Sequence[int], num_outputs: int) -> list[int]:
    """Every prompt has one answer."""
    return [(7 * sum(prompt) + 13 * len(prompt) + 29 * index) % 997 for index in range(num_outputs)]


class FakeSglang:
    """The HTTP paths that a soak uses. Writes an event for each step, as the `jsonl` listener does."""

    def __init__(self, events: Path, fault: Fault | None = None) -> None:
        self._events, self._fault = events.open("a", buffering=1), fault
        self._open: set[str] = set()
        self._aborted: set[str] = set()
        self._said: dict[str, list[int]] = {}
        self._num_asked = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve on loopback; gives the base URL."""
        app = web.Application()
        app.add_routes([web.post("/generate", self._generate), web.post("/abort_request", self._abort)])
        app.add_routes([web.get("/v1/loads", self._loads), web.post("/open_session", self._open_session)])
        app.add_routes([web.post("/set_internal_state", self._set), web.get("/server_info", self._fine)])
        for path in ("pause_generation", "continue_generation", "flush_cache", "close_session", "slow_down"):
            app.add_routes([web.post(f"/{path}", self._fine)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
            self._events.close()

    async def _fine(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _set(self, request: web.Request) -> web.Response:
        return web.json_response([True])

    async def _open_session(self, request: web.Request) -> web.Response:
        self._said[(await request.json())["session_id"]] = []
        return web.json_response({})

    async def _loads(self, request: web.Request) -> web.Response:
        load = {"num_running_reqs": 0, "num_waiting_reqs": 0, "num_used_tokens": 0}
        return web.json_response({"loads": [load | {"num_used_tokens": LEAK * (self._fault == "leak")}]})

    async def _abort(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._aborted |= self._open if body.get("abort_all") else {body["rid"]}
        return web.json_response({})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body, reply = await request.json(), web.StreamResponse()
        await reply.prepare(request)
        rid, num_outputs = body["rid"], body["sampling_params"]["max_new_tokens"]
        self._open.add(rid)
        self._num_asked += 1
        said = self._said.get((body.get("session_params") or {}).get("id"), [])
        is_hit = self._num_asked >= FAULTY_FROM
        answer = right_answer([*said, *body["input_ids"]], num_outputs)
        if is_hit and self._fault == "wrong token":
            answer[-1] += 1
        if is_hit and self._fault == "hang":
            await asyncio.sleep(3600)
        given = await self._give(reply, rid, answer)
        said += [*body["input_ids"], *given]
        if is_hit and self._fault == "late token":
            await self._send(reply, [*given, 1], None)
        self._open.discard(rid)
        return reply

    async def _give(self, reply: web.StreamResponse, rid: str, answer: list[int]) -> list[int]:
        for number in range(1, len(answer) + 1):
            await self._step(rid, number)
            if rid in self._aborted:
                if self._fault == "late steps":
                    await asyncio.sleep(LATE_S)
                    for _ in range(STEPS_LATE):
                        await self._step(rid, number)
                await self._send(reply, answer[number - 1 : number], {"type": "abort"})
                return answer[:number]
            await self._send(reply, answer[:number], {"type": "length"} if number == len(answer) else None)
        return answer

    async def _step(self, rid: str, number: int) -> None:
        event = {"event": "step_done", "start_s": time.monotonic(), "decode": {rid: number}, "prompt": {}}
        self._events.write(json.dumps(event) + "\n")
        await asyncio.sleep(STEP_S)

    async def _send(
        self, reply: web.StreamResponse, tokens: list[int], reason: dict[str, Any] | None
    ) -> None:
        event = {"output_ids": tokens, "meta_info": {"finish_reason": reason}}
        with suppress(ConnectionResetError):  # the client is gone
            await reply.write(b"data: " + orjson.dumps(event) + b"\n\n")
