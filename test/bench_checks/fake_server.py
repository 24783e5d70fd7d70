"""A server without a model whose token times are known: it streams in SGLang's format and notes its writes.

What the client should see is told by the request (`Script`, in `custom_params` of its sampling parameters);
what really was written, and when, is told by `/written`. Times are seconds of CLOCK_MONOTONIC, which all
processes of a Linux machine share. It knows nothing of the client.
"""

from __future__ import annotations

import asyncio
import gc
import math
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson
import uvloop
from aiohttp import web

from sglang_layered_lab.bench.client_data import reserve_files

Kind = Literal["scattered", "lockstep"]
Fault = Literal["status", "cut", "short", "error-event", "hang", "back"]
KEY = "fake_script"
MAX_BODY_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Script:
    """When a request's tokens come.

    `scattered`: the first after a time drawn from [first_s, 2 first_s), then gaps drawn from
    [gap_s / 2, 3 gap_s / 2), all from `seed`. `lockstep`: after first_s at every multiple of gap_s on the
    clock, so that all streams get a token at once, as after a server's step. Each write holds
    `events_per_write` events of `tokens_per_event` tokens, in two halves with a pause of `split_s` between
    them if that is not 0. A `fault` strikes after `fault_after` writes (`status`: before the first).
    """

    kind: Kind = "scattered"
    seed: int = 0
    first_s: float = 0.1
    gap_s: float = 0.02
    tokens_per_event: int = 1
    events_per_write: int = 1
    split_s: float = 0.0
    fault: Fault | None = None
    fault_after: int = 0

    def sampling(self) -> dict[str, Any]:
        """Sampling parameters that ask for it."""
        return {"custom_params": {KEY: asdict(self)}}

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Script:
        """The script that a request asks for; the default one if it asks for none."""
        return cls(**(body["sampling_params"].get("custom_params") or {}).get(KEY, {}))

    def num_writes(self, num_tokens: int) -> int:
        """How many writes that many tokens take."""
        return math.ceil(math.ceil(num_tokens / self.tokens_per_event) / self.events_per_write)

    def times_s(self, received_s: float, num_writes: int) -> list[float]:
        """When each write is to be made."""
        if self.kind == "lockstep":
            first = math.ceil((received_s + self.first_s) / self.gap_s)
            return [(first + index) * self.gap_s for index in range(num_writes)]
        draw = random.Random(self.seed)
        times_s = [received_s + self.first_s * (1 + draw.random())]
        while len(times_s) < num_writes:
            times_s.append(times_s[-1] + self.gap_s * (0.5 + draw.random()))
        return times_s


@dataclass(frozen=True, slots=True)
class Written:
    """What was written for one request: `events` are pairs of time and running token count."""

    received_s: float
    prompt_tokens: int
    events: list[tuple[float, int]]


class Accepts:
    """Makes the handler of each connection and notes when it came: no sooner can the process know of it."""

    def __init__(self, make: Callable[[], asyncio.BaseProtocol]) -> None:
        self._make = make
        self._accepted_s: dict[asyncio.BaseProtocol, float] = {}

    def __call__(self) -> asyncio.BaseProtocol:
        """A new connection's handler."""
        now_s = time.monotonic()
        handler = self._make()
        self._accepted_s[handler] = now_s
        return handler

    def take_s(self, request: web.Request) -> float | None:
        """When the request's connection came; None if the request is not its first."""
        return self._accepted_s.pop(request.protocol, None)


class FakeServer:
    """Answers `/generate` by script.

    `written` has every request by its id, `open` how many run now, `aborted` whose connection was closed.
    `before_write`, if given, is awaited before each write, with the request's id and the tokens written.
    A request is received when its connection is (`serve` only), or when its head has been read.
    """

    def __init__(self, before_write: Callable[[str, int], Awaitable[None]] | None = None) -> None:
        self._before_write = before_write
        self._accepts: Accepts | None = None
        self.written: dict[str, Written] = {}
        self.open = 0
        self.aborted: list[str] = []

    def app(self) -> web.Application:
        """The application to run."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/written", self._written)
        app.router.add_get("/open", self._show_open)
        app.router.add_get("/server_info", self._server_info)
        app.router.add_post("/flush_cache", self._flush_cache)
        return app

    async def serve(self, port: int) -> None:
        """Serve on loopback, without end."""
        runner = web.AppRunner(self.app(), handler_cancellation=True, access_log=None)
        await runner.setup()
        assert runner.server is not None
        self._accepts = Accepts(runner.server)
        server = await asyncio.get_running_loop().create_server(self._accepts, "127.0.0.1", port)
        await server.serve_forever()

    async def _models(self, request: web.Request) -> web.Response:
        self._received_s(request)  # the connection's next request is not its first
        return web.json_response({"object": "list", "data": []})

    async def _server_info(self, _: web.Request) -> web.Response:
        return web.json_response({"internal_states": [{}]})

    async def _flush_cache(self, _: web.Request) -> web.Response:
        return web.Response(text="nothing is cached")

    async def _written(self, _: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self.written), content_type="application/json")

    async def _show_open(self, _: web.Request) -> web.Response:
        return web.json_response({"open": self.open, "aborted": self.aborted})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        received_s = self._received_s(request)
        body = orjson.loads(await request.read())
        script = Script.of(body)
        if script.fault == "status":
            return web.json_response({"error": {"message": "a fault was asked for"}}, status=500)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        prompt = body.get("input_ids") or body["text"].split()
        written = self.written[body["rid"]] = Written(received_s, len(prompt), [])
        self.open += 1
        try:
            await self._stream(request, response, script, body, written)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.append(body["rid"])
            raise
        finally:
            self.open -= 1
        return response

    def _received_s(self, request: web.Request) -> float:
        now_s = time.monotonic()
        accepted_s = self._accepts.take_s(request) if self._accepts is not None else None
        return now_s if accepted_s is None else accepted_s

    async def _stream(
        self,
        request: web.Request,
        response: web.StreamResponse,
        script: Script,
        body: Mapping[str, Any],
        written: Written,
    ) -> None:
        num_tokens = int(body["sampling_params"]["max_new_tokens"])
        times_s = script.times_s(written.received_s, script.num_writes(num_tokens))
        writes = _writes(body["rid"], written.prompt_tokens, num_tokens, script)  # each is built while idle
        for index, (time_s, (data, count)) in enumerate(zip(times_s, writes, strict=True)):
            if script.fault is not None and index == script.fault_after:
                await _strike(script.fault, request, response)
                return
            await asyncio.sleep(max(time_s - time.monotonic(), 0.0))
            if script.split_s:
                half = len(data) // 2
                await response.write(data[:half])
                await asyncio.sleep(script.split_s)
                data = data[half:]
            if self._before_write is not None:
                await self._before_write(body["rid"], written.events[-1][1] if written.events else 0)
            written.events.append((time.monotonic(), count))  # before: then no arrival is earlier
            await response.write(data)
        await response.write(b"data: [DONE]\n\n")


async def _strike(fault: Fault, request: web.Request, response: web.StreamResponse) -> None:
    if fault == "cut" and request.transport is not None:
        request.transport.abort()
    elif fault == "error-event":
        await response.write(b'data: {"error":{"message":"a fault was asked for","code":400}}\n\n')
        await response.write(b"data: [DONE]\n\n")
    elif fault == "short":
        await response.write(b"data: [DONE]\n\n")
    elif fault == "back":
        await response.write(b'data: {"meta_info":{"completion_tokens":0}}\n\n')
    elif fault == "hang":
        await asyncio.Event().wait()


def _writes(rid: str, prompt_tokens: int, num_tokens: int, script: Script) -> Iterator[tuple[bytes, int]]:
    """Each write's bytes and the token count that it reaches."""
    ends = [*range(script.tokens_per_event, num_tokens, script.tokens_per_event), num_tokens]
    for start in range(0, len(ends), script.events_per_write):
        some = ends[start : start + script.events_per_write]
        yield b"".join(_event(rid, prompt_tokens, end, end == num_tokens) for end in some), some[-1]


def _event(rid: str, prompt_tokens: int, count: int, is_last: bool) -> bytes:
    """One event, as long as SGLang's: all tokens so far are in each. Its text looks like a token count."""
    meta = {
        "id": rid,
        "finish_reason": {"type": "length", "length": count} if is_last else None,
        "prompt_tokens": prompt_tokens,
        "weight_version": "default",
        "total_retractions": 0,
        "reasoning_tokens": 0,
        "completion_tokens": count,
        "cached_tokens": 0,
    }
    text = '"completion_tokens":999999,' + "word " * count
    ids = list(range(10_000, 10_000 + count))
    return b"data: " + orjson.dumps({"text": text, "output_ids": ids, "meta_info": meta}) + b"\n\n"


def serve(port: int) -> None:
    """Serve on loopback until the process ends, with nothing that could stop it for long."""
    gc.disable()
    reserve_files()
    uvloop.run(FakeServer().serve(port))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
