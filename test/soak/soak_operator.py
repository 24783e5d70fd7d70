"""What an operator does to a server in a soak: pauses, settings, flushes, abort storms, clients that die."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import orjson

from soak_asks import generate_body
from soak_desk import Desk
from soak_plan import Disturbance, SoakPlan
from soak_servers import GROUP_TOKENS

DYING_CLIENT = Path(__file__).with_name("dying_client.py")
IDLE_S = 30.0  # SGLang notices a closed connection after some seconds
DYING_SESSION_S = 2.0
DEATH_S = 10.0
SESSION_CAPACITY = 100_000  # SGLang wants it and ignores it


class Operator:
    """Disturbs one server as the plan says. `gate` is open while new requests may be sent."""

    def __init__(self, desk: Desk, plan: SoakPlan, gate: asyncio.Event) -> None:
        self._desk, self._plan, self._gate = desk, plan, gate
        self.num_flushes = 0  # of an idle server: sessions keep nothing then
        self._num_dead = 0

    async def disturb(self, what: Disturbance) -> None:
        """Do one disturbance to its end."""
        if what.kind in ("retract", "in place"):
            await self._pause(what)
        elif what.kind == "flush":
            await self._flush()
        elif what.kind == "lull":
            await self.lull()
        elif what.kind == "abort all":
            await self._desk.abort_all()
        elif what.kind == "abort half":
            await self._abort_half(random.Random(what.seed))
        elif what.kind == "client dies":
            await self._client_dies(random.Random(what.seed))
        else:
            await self._set_for_a_while(what)
        self._desk.played.operator[what.kind] += 1

    async def lull(self) -> None:
        """Send nothing until all is answered: then the server must be idle and able to flush."""
        self._gate.clear()
        while self._desk.open:
            await asyncio.sleep(0.02)
        await self.flush_idle("lull")
        self._gate.set()

    async def flush_idle(self, when: str) -> None:
        """An idle server must not refuse; a request whose client hung up may need a few seconds to end."""
        with suppress(httpx.HTTPError):
            reply = await self._desk.http.post("/flush_cache", params={"timeout": 20}, timeout=40)
            if reply.status_code == 200:
                self._desk.played.operator["flushed"] += 1
                self.num_flushes += 1
                return
        self._desk.trouble(f"{when}: the idle server would not flush its cache")

    async def wait_until_idle(self, max_held_tokens: int) -> None:
        """All is answered: what runs or waits must end, and KV slots come back but for what sessions hold."""
        deadline = time.monotonic() + IDLE_S
        while True:
            loads = await self._desk.loads()
            held = loads["num_used_tokens"]
            if not loads["num_running_reqs"] and not loads["num_waiting_reqs"] and held <= max_held_tokens:
                return
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        self._desk.trouble(
            f"end: the server is not idle as at its start, {loads} (may hold {max_held_tokens})"
        )

    async def _pause(self, what: Disturbance) -> None:
        await self._desk.post("/pause_generation", {"mode": what.kind.replace(" ", "_")})
        await asyncio.sleep(what.duration_s)
        if what.flushes:
            await self._flush()
        await self._desk.post("/continue_generation", {})

    async def _set_for_a_while(self, what: Disturbance) -> None:
        name, other, usual = ("layered_prefill", 0, 1)
        if what.kind == "group tokens":
            name, other, usual = ("layered_group_tokens", what.group_tokens, GROUP_TOKENS)
        await self._set(name, other)
        await asyncio.sleep(4 * what.duration_s)
        await self._set(name, usual)

    async def _set(self, name: str, value: int) -> None:
        reply = await self._desk.post("/set_internal_state", {"server_args": {name: value}})
        if reply.status_code == 200 and reply.json() != [True]:  # one answer for each scheduler
            self._desk.trouble(f"/set_internal_state refused {name} {value}")

    async def _flush(self) -> None:
        """A busy server refuses, and that is fine."""
        reply = await self._desk.http.post("/flush_cache")
        done = reply.status_code == 200
        self.num_flushes += done
        self._desk.played.operator["flushed" if done else "flush refused"] += 1

    async def _abort_half(self, rng: random.Random) -> None:
        """One by one, so that they hit requests that run, that are a cohort, and that wait."""
        doomed = [each for each in self._desk.open.values() if rng.random() < 0.5 and not each.is_abort_sent]
        await asyncio.gather(*(self._desk.abort(each) for each in doomed))

    async def _client_dies(self, rng: random.Random) -> None:
        """A process with open streams, one of them a session's turn, is killed with SIGKILL in mid-stream."""
        self._num_dead += 1
        name = f"dead-{self._num_dead:07d}"
        bodies = []
        for number in range(3):
            body = generate_body(rng.choice(self._plan.prompts), self._plan.spec.max_output_tokens)
            bodies.append(body | {"stream": True, "rid": f"{name}-{number}"})
        if self._plan.spec.num_talkers:
            opening = {"capacity_of_str_len": SESSION_CAPACITY, "session_id": name, "streaming": True}
            await self._desk.post("/open_session", opening | {"timeout": DYING_SESSION_S})
            bodies[0]["session_params"] = {"id": name}
        command = [sys.executable, "-S", str(DYING_CLIENT), self._desk.base_url]
        pipe = asyncio.subprocess.PIPE
        client = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert client.stdin is not None and client.stdout is not None
        try:
            client.stdin.write(b"".join(orjson.dumps(body) + b"\n" for body in bodies))
            client.stdin.write_eof()
            with suppress(asyncio.TimeoutError):  # at the request limit its requests may wait for long
                await asyncio.wait_for(client.stdout.readline(), DEATH_S)
        finally:
            client.kill()
            await client.wait()
