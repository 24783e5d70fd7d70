"""Plays a soak plan against a server: streams, aborts, an operator, and a watchdog over all of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from soak_plan import Disturbance, Job, SoakPlan
from soak_servers import GROUP_TOKENS

HANG_S = 60.0
SAMPLE_S = 0.5
MAX_ERRORS = 5


@dataclass(slots=True)
class Outcome:
    """What a client got. `ending` is SGLang's finish type, `hung up`, or an error's text."""

    job: Job
    tokens: list[int] = field(default_factory=list)
    ending: str = "none"


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Resident memory of the scheduler process, and how many requests had ended by then."""

    time_s: float
    requests: int
    rss_bytes: int


@dataclass(slots=True)
class Played:
    """All that came of a plan; `trouble` is what the client itself saw go wrong."""

    outcomes: list[Outcome] = field(default_factory=list)
    memory: list[MemorySample] = field(default_factory=list)
    operator: Counter[str] = field(default_factory=Counter)
    trouble: list[str] = field(default_factory=list)
    duration_s: float = 0.0


def generate_body(prompt: tuple[int, ...], num_outputs: int) -> dict[str, Any]:
    """Greedy, and never ended by the model itself."""
    sampling = {"temperature": 0, "max_new_tokens": num_outputs, "ignore_eos": True}
    return {"input_ids": list(prompt), "sampling_params": sampling}


def request_id(job: Job) -> str:
    """All of one length: SGLang aborts every request whose id starts with the one given."""
    return f"soak-{job.index:07d}"


class SoakClient:
    """Plays one plan once. `rss_bytes` reads the scheduler's memory; `ended` hears of every ended request."""

    def __init__(
        self, base_url: str, plan: SoakPlan, rss_bytes: Callable[[], int], ended: Callable[[], None]
    ) -> None:
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=base_url, timeout=None, limits=limits, trust_env=False)
        self._plan, self._rss_bytes, self._ended = plan, rss_bytes, ended
        self._jobs = iter(plan.jobs)
        self._num_sent = self._num_open = 0
        self._may_send = asyncio.Event()  # cleared during a lull
        self._may_send.set()
        self._start_s = self._news_s = time.monotonic()
        self.played = Played()

    async def play(self) -> Played:
        """Play to the end, or until the server hangs or fails."""
        streams = [asyncio.create_task(self._stream()) for _ in range(self._plan.spec.num_streams)]
        beside = [asyncio.create_task(task()) for task in (self._operate, self._watch, self._sample)]
        await self._until_done(streams, [*streams, *beside])
        for task in (*streams, *beside):
            task.cancel()
        await asyncio.gather(*streams, *beside, return_exceptions=True)
        if not self.played.trouble:
            await self._operator_post("/continue_generation", {})
            await self._flush_idle("end")
        await self._http.aclose()
        self.played.duration_s = time.monotonic() - self._start_s
        return self.played

    async def _until_done(self, streams: list[asyncio.Task[None]], tasks: list[asyncio.Task[None]]) -> None:
        pending = set(tasks)
        while any(not task.done() for task in streams) and not self.played.trouble:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is not None:
                    self.played.trouble.append(f"the client failed: {task.exception()!r}")

    async def _stream(self) -> None:
        for job in self._jobs:
            await self._may_send.wait()
            self._num_open += 1
            self._num_sent += 1
            try:
                await asyncio.sleep(job.pause_s)
                self._note(await self._ask(job))
            finally:
                self._num_open -= 1

    def _note(self, outcome: Outcome) -> None:
        self.played.outcomes.append(outcome)
        self._ended()
        if outcome.ending.startswith("error"):
            self.played.operator["errors"] += 1
            if self.played.operator["errors"] == MAX_ERRORS:
                self.played.trouble.append(f"stopped after {MAX_ERRORS} failed requests: {outcome.ending}")

    async def _ask(self, job: Job) -> Outcome:
        outcome = Outcome(job)
        reader = asyncio.create_task(self._read(job, outcome))
        aborter = None if job.abort is None else asyncio.create_task(self._abort(job, outcome, reader))
        try:
            await reader
        except asyncio.CancelledError:
            if outcome.ending != "hung up":
                raise  # the whole soak was cancelled
        except httpx.HTTPError as error:
            outcome.ending = f"error {error!r}"
        finally:
            if aborter is not None:
                aborter.cancel()
                await asyncio.gather(aborter, return_exceptions=True)
        return outcome

    async def _read(self, job: Job, outcome: Outcome) -> None:
        body = generate_body(self._plan.prompts[job.prompt], job.num_outputs)
        body |= {"stream": True, "rid": request_id(job)}
        async with self._http.stream("POST", "/generate", json=body) as reply:
            if reply.status_code != 200:
                outcome.ending = f"error {reply.status_code}: {(await reply.aread())[:300]!r}"
                return
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    self._hear(json.loads(line.removeprefix("data: ")), outcome)

    def _hear(self, event: dict[str, Any], outcome: Outcome) -> None:
        self._news_s = time.monotonic()
        if "error" in event:
            aborted = "abort" in event["error"]["message"].lower() and outcome.job.abort is not None
            outcome.ending = "abort" if aborted else f"error {event['error']}"
            return
        if len(event["output_ids"]) > len(outcome.tokens):  # an abort's last event holds one token only
            outcome.tokens = event["output_ids"]
        reason = event["meta_info"]["finish_reason"]
        if reason is not None:
            outcome.ending = reason["type"]
            if reason["type"] == "abort" and outcome.job.abort is None:
                outcome.ending = f"error {reason}"

    async def _abort(self, job: Job, outcome: Outcome, reader: asyncio.Task[None]) -> None:
        assert job.abort is not None
        if job.abort.after_s is not None:
            await asyncio.sleep(job.abort.after_s)
        while len(outcome.tokens) < (job.abort.after_tokens or 0):
            await asyncio.sleep(0.01)
        if reader.done():
            return
        if job.abort.kind == "hang up":
            outcome.ending = "hung up"
            reader.cancel()
        else:
            await self._http.post("/abort_request", json={"rid": request_id(job)})

    async def _operate(self) -> None:
        for disturbance in self._plan.disturbances:
            while self._num_sent < disturbance.at_request:
                await asyncio.sleep(0.02)
            await self._disturb(disturbance)

    async def _disturb(self, disturbance: Disturbance) -> None:
        kind = disturbance.kind
        if kind in ("retract", "in place"):
            await self._operator_post("/pause_generation", {"mode": kind.replace(" ", "_")})
            await asyncio.sleep(disturbance.duration_s)
            if disturbance.flushes:
                await self._flush()
            await self._operator_post("/continue_generation", {})
        elif kind == "flush":
            await self._flush()
        elif kind == "lull":
            self._may_send.clear()
            while self._num_open:
                await asyncio.sleep(0.02)
            await self._flush_idle("lull")
            self._may_send.set()
        else:
            name, other, usual = ("layered_prefill", 0, 1)
            if kind == "group tokens":
                name, other, usual = ("layered_group_tokens", disturbance.group_tokens, GROUP_TOKENS)
            await self._set(name, other)
            await asyncio.sleep(4 * disturbance.duration_s)
            await self._set(name, usual)
        self.played.operator[kind] += 1

    async def _operator_post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        reply = await self._http.post(path, json=body)
        if reply.status_code != 200:
            self.played.trouble.append(f"{path} {body}: {reply.status_code} {reply.text[:200]}")
        return reply

    async def _set(self, name: str, value: int) -> None:
        reply = await self._operator_post("/set_internal_state", {"server_args": {name: value}})
        if reply.json() != [True]:  # one answer for each scheduler
            self.played.trouble.append(f"/set_internal_state refused {name} {value}")

    async def _flush(self) -> None:
        """A busy server refuses, and that is fine."""
        reply = await self._http.post("/flush_cache")
        self.played.operator["flushed" if reply.status_code == 200 else "flush refused"] += 1

    async def _flush_idle(self, when: str) -> None:
        """An idle server must not refuse; a request whose client hung up may need a few seconds to end."""
        with suppress(httpx.HTTPError):
            reply = await self._http.post("/flush_cache", params={"timeout": 20}, timeout=40)
            if reply.status_code == 200:
                self.played.operator["flushed"] += 1
                return
        self.played.trouble.append(f"{when}: the idle server would not flush its cache")

    async def _watch(self) -> None:
        while time.monotonic() - self._news_s < HANG_S:
            await asyncio.sleep(1)
        self.played.trouble.append(f"hang: no token for {HANG_S:g} s with {self._num_open} streams open")

    async def _sample(self) -> None:
        while True:
            now_s = time.monotonic() - self._start_s
            self.played.memory.append(MemorySample(now_s, len(self.played.outcomes), self._rss_bytes()))
            await asyncio.sleep(SAMPLE_S)
