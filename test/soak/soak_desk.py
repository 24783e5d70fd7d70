"""Where a soak's requests are sent, and what is known of those that are open. Knows HTTP; draws nothing."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
from event_lines import events

from soak_asks import AbortAll, Ask, Outcome

MAX_ERRORS = 5
HANG_S = 60.0
MAX_OVERTAKERS = 300  # SGLang serves first come, first served; what it retracts waits again
EVIDENCE_S = 10.0  # a server that hangs may not answer


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Resident memory of the scheduler process, and how many requests had ended by then."""

    time_s: float
    requests: int
    rss_bytes: int


@dataclass(slots=True)
class Played:
    """All that came of a plan; `trouble` is what the client itself saw go wrong.

    `at_trouble` is what the server said of itself then, by path: its state, and its load.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    abort_alls: list[AbortAll] = field(default_factory=list)
    memory: list[MemorySample] = field(default_factory=list)
    operator: Counter[str] = field(default_factory=Counter)
    trouble: list[str] = field(default_factory=list)
    at_trouble: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0


class Desk:
    """Sends requests, aborts and orders to one server. Without news for `hang_s` the server hangs."""

    def __init__(self, base_url: str, hang_s: float = HANG_S) -> None:
        # SGLang's HTTP server closes a connection that was idle for 5 s, which is httpx's own limit too: a
        # request sent in that moment ends in a ReadError that is no fault of the server.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=1.0)
        self.http = httpx.AsyncClient(base_url=base_url, timeout=None, limits=limits, trust_env=False)
        self.base_url, self.hang_s = base_url, hang_s
        self.played = Played()
        self.open: dict[str, Outcome] = {}
        self.start_s = self.news_s = time.monotonic()

    def trouble(self, what: str) -> None:
        """Note what ends the soak."""
        self.played.trouble.append(what)

    def begin(self, ask: Ask) -> Outcome:
        """A request that is open from now on; `follow` it."""
        self.news_s = time.monotonic()
        self.open[ask.rid] = Outcome(ask, asked_s=self.news_s)
        return self.open[ask.rid]

    async def ask(self, ask: Ask) -> Outcome:
        """Send a request, give it up when it is time, and return what came of it."""
        return await self.follow(self.begin(ask))

    async def follow(self, outcome: Outcome) -> Outcome:
        """Send a request that was begun, and see it through."""
        ask = outcome.ask
        reader = asyncio.create_task(self._read(outcome))
        aborter = None if ask.abort is None else asyncio.create_task(self._give_up(outcome, reader))
        try:
            await reader
        except asyncio.CancelledError:
            if outcome.ending != "hung up":
                raise  # the whole soak was cancelled
        except httpx.HTTPError as error:
            outcome.ending = f"error {error!r}"
        finally:
            outcome.ended_s = time.monotonic()
            del self.open[ask.rid]
            if aborter is not None:
                if not outcome.is_abort_sent:
                    aborter.cancel()
                await asyncio.gather(aborter, return_exceptions=True)
        self._note(outcome)
        return outcome

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Give an order that the server must take."""
        reply = await self.http.post(path, json=body)
        if reply.status_code != 200:
            self.trouble(f"{path} {body}: {reply.status_code} {reply.text[:200]}")
        return reply

    async def fence(self) -> float:
        """Return a time by which the scheduler had read all that was sent before: it reads in order."""
        await self.http.get("/server_info")
        return time.monotonic()

    async def abort(self, outcome: Outcome) -> None:
        """Abort one request by its id."""
        outcome.is_abort_sent = True
        await self.post("/abort_request", {"rid": outcome.ask.rid})
        outcome.aborted_s = await self.fence()

    async def abort_all(self) -> None:
        """Abort whatever the server has.

        It may end the last requests, and with them the soak before the server has said that it read it.
        """
        sent_s, read_s = time.monotonic(), math.inf
        try:
            await self.post("/abort_request", {"rid": "", "abort_all": True})
            read_s = await self.fence()
        finally:
            self.played.abort_alls.append(AbortAll(sent_s, read_s))

    async def loads(self) -> dict[str, int]:
        """What runs, what waits, and how many KV slots neither are free nor can be evicted."""
        found = (await self.http.get("/v1/loads")).json()["loads"][0]
        return {name: found[name] for name in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")}

    async def look_if_in_trouble(self) -> None:
        """Keep what the server says of itself while the requests that are in trouble are still open."""
        if not self.played.trouble:
            return
        for path in ("/v1/loads", "/server_info"):
            try:
                self.played.at_trouble[path] = (await self.http.get(path, timeout=EVIDENCE_S)).json()
            except (httpx.HTTPError, ValueError) as error:
                self.played.at_trouble[path] = f"no answer: {error!r}"

    def overtaken(self) -> list[tuple[str, int]]:
        """Open requests that far too many later ones have overtaken, and how many."""
        asked = [
            each.asked_s for each in self.played.outcomes[-2 * MAX_OVERTAKERS :] if each.ending == "length"
        ]
        counts = {rid: sum(when > each.asked_s for when in asked) for rid, each in self.open.items()}
        return [(rid, number) for rid, number in counts.items() if number > MAX_OVERTAKERS]

    def open_requests(self) -> str:
        """The open requests, the oldest first, for a person."""
        now = time.monotonic()
        oldest = sorted(self.open.values(), key=lambda each: each.asked_s)
        return ", ".join(
            f"{each.ask.rid} ({len(each.ask.prompt)} tokens, {len(each.tokens)} of {each.ask.num_outputs}"
            f" answered, {now - each.asked_s:.0f} s{', aborted' if each.is_abort_sent else ''})"
            for each in oldest
        )

    async def _read(self, outcome: Outcome) -> None:
        async with self.http.stream("POST", "/generate", json=outcome.ask.body()) as reply:
            if reply.status_code != 200:
                outcome.ending = f"error {reply.status_code}: {(await reply.aread())[:300]!r}"
                return
            async for event in events(reply):
                self.news_s = time.monotonic()
                outcome.hear(event)

    async def _give_up(self, outcome: Outcome, reader: asyncio.Task[None]) -> None:
        abort = outcome.ask.abort
        assert abort is not None
        if abort.after_s is not None:
            await asyncio.sleep(abort.after_s)
        while len(outcome.tokens) < (abort.after_tokens or 0) and not reader.done():
            await asyncio.sleep(0.01)
        if reader.done():
            return
        if abort.kind == "hang up":
            outcome.ending = "hung up"
            reader.cancel()
        else:
            await self.abort(outcome)

    def _note(self, outcome: Outcome) -> None:
        self.played.outcomes.append(outcome)
        if outcome.ending.startswith("error"):
            self.played.operator["errors"] += 1
            if self.played.operator["errors"] == MAX_ERRORS:
                self.trouble(f"stopped after {MAX_ERRORS} failed requests: {outcome.ending}")
