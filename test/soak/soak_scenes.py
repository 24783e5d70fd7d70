"""Scenes that open a soak: the few moments that a storm meets only by chance, each brought about on purpose.

A sleep before each step (SGLang's /slow_down) holds the moment open; the server's event file says when it is
there. A scene judges liveness itself; its answers are checked with all others, and its aborts by the events.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soak_asks import Ask, Outcome
from soak_desk import Desk
from soak_events import NewEvents
from soak_operator import SESSION_CAPACITY
from soak_plan import VOCAB, SoakSpec

STEP_SLEEP_S = 0.25
LONG, SHORT = 300, 30  # tokens of prompts: with 64 tokens a group a cohort of both has five groups or more
GROUPS_BEFORE = 2


SCENES = (
    "limit-abort-all",
    "limit-abort-each",
    "cohort-abort-one",
    "pool-full",
    "turn-retracted",
    "turn-aborted",
)
OF_SESSIONS = SCENES[-2:]


class SceneError(Exception):
    """A scene did not come about, or nobody was answered after it."""


class Scenes:
    """Plays scenes on an idle server, one after another; `events` is the server's event file."""

    def __init__(self, desk: Desk, spec: SoakSpec, events: Path) -> None:
        self._desk, self._spec, self._events = desk, spec, events
        self._rng = random.Random(spec.seed)
        self._tag, self._number, self._tail = "", 0, NewEvents(events)
        self._tasks: list[asyncio.Task[Outcome]] = []

    async def play(self, names: Sequence[str] | None) -> None:
        """Play the named scenes, or all that this server can play; trouble ends them."""
        if names is None:
            names = SCENES if self._spec.num_talkers else SCENES[: -len(OF_SESSIONS)]
        for name in names:
            self._tag, self._tail = name, NewEvents(self._events)
            self._desk.played.operator[f"scene {name}"] += 1
            try:
                await getattr(self, name.replace("-", "_"))()
                await self._at_speed()
                await self._answered_anew()
            except SceneError as error:
                self._desk.trouble(f"scene {name}: {error}")
                await self._desk.look_if_in_trouble()
                return
            finally:
                for task in self._tasks:
                    task.cancel()

    async def limit_abort_all(self) -> None:
        """The request limit is reached, one request waits, and all are aborted."""
        await self._reach_the_limit()
        await self._desk.abort_all()

    async def limit_abort_each(self) -> None:
        """As before, but what runs is aborted one by one: the one that waits must be answered."""
        *running, waiting = await self._reach_the_limit()
        await asyncio.gather(*(self._desk.abort(each) for each in running))
        await self._at_speed()
        await self._until_ended(waiting)

    async def cohort_abort_one(self) -> None:
        """One of two prompts of a cohort is aborted in flight; the other must be answered."""
        await self._decoding()
        doomed, other = await self._together(LONG, SHORT)
        await self._in_flight(doomed)
        await self._desk.abort(doomed)
        await self._until_ended(doomed)
        await self._at_speed()
        await self._until_ended(other)

    async def pool_full(self) -> None:
        """Prompts that fit together, with answers that do not: SGLang must retract some of them."""
        share = self._spec.pool_tokens // 4
        outcomes = await self._together(*[share * 9 // 10] * 4, num_outputs=share // 5)
        await self._until_ended(*outcomes)

    async def turn_retracted(self) -> None:
        """A pause retracts the second turn of a conversation in flight."""
        said = await self._first_turn("a")
        await self._decoding()
        turn = self._send(self._turn("a", said, LONG))
        await self._in_flight(turn)
        await self._desk.post("/pause_generation", {"mode": "retract"})
        await self._desk.post("/continue_generation", {})
        await self._at_speed()
        await self._until_ended(turn)
        await self._desk.post("/close_session", {"session_id": self._session("a")})

    async def turn_aborted(self) -> None:
        """The second turn is aborted in flight, and the third follows the first."""
        said = await self._first_turn("a")
        await self._decoding()
        turn = self._send(self._turn("a", said, LONG))
        await self._in_flight(turn)
        await self._desk.abort(turn)
        await self._until_ended(turn)
        await self._at_speed()
        await self._until_ended(self._send(self._turn("a", said, SHORT)))
        await self._desk.post("/close_session", {"session_id": self._session("a")})

    async def _reach_the_limit(self) -> list[Outcome]:
        decoding = await self._decoding()
        prompts = await self._together(LONG, *[SHORT] * (self._spec.max_running_requests - 1))
        await self._in_flight(prompts[0], groups=0)
        return [decoding, *prompts]

    async def _decoding(self) -> Outcome:
        """A request that decodes, and from now on slowly."""
        outcome = self._send(self._ask(SHORT, 200))
        while not outcome.tokens and outcome.ending == "none":
            await asyncio.sleep(0.005)
        await self._desk.post("/slow_down", {"forward_sleep_time": STEP_SLEEP_S})
        return outcome

    async def _together(self, *lengths: int, num_outputs: int = 8) -> list[Outcome]:
        """Prompts that the scheduler finds in its queue at once, in this order."""
        await self._desk.post("/pause_generation", {"mode": "in_place"})
        outcomes = []
        for length in lengths:
            outcomes.append(self._send(self._ask(length, num_outputs)))
            await asyncio.sleep(0.05)  # the server takes them in the order in which they come
        await self._desk.fence()
        await self._desk.post("/continue_generation", {})
        return outcomes

    async def _in_flight(self, outcome: Outcome, groups: int = GROUPS_BEFORE) -> None:
        """Until the prompt has passed some groups; 0: until its cohort has its plan."""
        rid = outcome.ask.rid

        def is_it(event: dict[str, Any]) -> bool:
            if groups == 0:
                return event["event"] == "cohort_admitted" and rid in event["prompt_rows"]
            return (
                event["event"] == "group_done"
                and rid in event["request_ids"]
                and event["group_index"] >= groups - 1
            )

        if await self._tail.wait_for(is_it, self._desk.hang_s) is None:
            raise SceneError(
                f"the prompt {rid} was never in flight as wanted; open: {self._desk.open_requests()}"
            )

    async def _at_speed(self) -> None:
        await self._desk.post("/slow_down", {"forward_sleep_time": None})

    async def _answered_anew(self) -> None:
        """Abort what is left, and a new request must be answered."""
        for each in list(self._desk.open.values()):
            await self._desk.abort(each)
        await self._until_ended(self._send(self._ask(SHORT, 4)), *list(self._desk.open.values()))

    async def _until_ended(self, *outcomes: Outcome) -> None:
        """Liveness: with nothing in its way, a request ends."""
        deadline = asyncio.get_running_loop().time() + self._desk.hang_s
        while any(each.ask.rid in self._desk.open for each in outcomes):
            if asyncio.get_running_loop().time() > deadline:
                raise SceneError(
                    f"hang: after {self._desk.hang_s:g} s still open: {self._desk.open_requests()}"
                )
            await asyncio.sleep(0.01)

    async def _first_turn(self, name: str) -> tuple[int, ...]:
        opening = {
            "capacity_of_str_len": SESSION_CAPACITY,
            "session_id": self._session(name),
            "streaming": True,
        }
        await self._desk.post("/open_session", opening)
        outcome = self._send(self._turn(name, (), SHORT))
        await self._until_ended(outcome)
        return (*outcome.ask.prompt, *outcome.tokens)

    def _session(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _turn(self, name: str, said: tuple[int, ...], length: int) -> Ask:
        ask = self._ask(length, 6)
        return Ask(ask.rid, said + ask.prompt, 6, None, self._session(name), len(said))

    def _ask(self, length: int, num_outputs: int) -> Ask:
        self._number += 1
        prompt = tuple(self._rng.choices(range(3, VOCAB), k=length))
        return Ask(f"scene-{self._number:06d}", prompt, num_outputs)

    def _send(self, ask: Ask) -> Outcome:
        outcome = self._desk.begin(ask)
        self._tasks.append(asyncio.create_task(self._desk.follow(outcome)))
        return outcome
