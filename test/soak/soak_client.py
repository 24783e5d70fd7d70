"""Plays a soak plan against a server: scenes, then streams, talkers and an operator under a watchdog."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from soak_asks import Ask
from soak_desk import HANG_S, Desk, MemorySample, Played
from soak_operator import Operator
from soak_plan import SoakPlan
from soak_scenes import Scenes
from soak_talk import Talkers

SAMPLE_S = 0.5
LAST = Ask("last-0000001", tuple(range(3, 40)), 4)


class SoakClient:
    """Plays one plan once.

    `rss_bytes` reads the scheduler's memory; `ended` hears of every ended request of the plan; `events` is
    the server's event file. `scenes` names those that are played first, None means all.
    """

    def __init__(
        self,
        base_url: str,
        plan: SoakPlan,
        rss_bytes: Callable[[], int],
        ended: Callable[[], None],
        *,
        events: Path,
        scenes: Sequence[str] | None = None,
        hang_s: float = HANG_S,
    ) -> None:
        self._desk = Desk(base_url, hang_s)
        self._plan, self._rss_bytes, self._ended = plan, rss_bytes, ended
        self._scenes, self._scene_names = Scenes(self._desk, plan.spec, events), scenes
        self._jobs, self._num_sent = iter(plan.jobs), 0
        self._gate = asyncio.Event()  # shut during a lull
        self._gate.set()
        self._operator = Operator(self._desk, plan, self._gate)
        self._streams_go_on = True
        self._talkers = Talkers(self._desk, self._operator, self._gate, lambda: self._streams_go_on)

    async def play(self) -> Played:
        """Play to the end, or until the server hangs or fails."""
        played = self._desk.played
        self._sample()
        await self._scenes.play(self._scene_names)
        if not played.trouble:
            await self._storm()
        if not played.trouble:
            await self._end_idle()
            await self._desk.look_if_in_trouble()
        await self._desk.http.aclose()
        played.duration_s = time.monotonic() - self._desk.start_s
        return played

    async def _storm(self) -> None:
        self._desk.news_s = time.monotonic()
        spec, conversations = self._plan.spec, iter(self._plan.conversations)
        streams = [asyncio.create_task(self._stream()) for _ in range(spec.num_streams)]
        talkers = [asyncio.create_task(self._talkers.talk(conversations)) for _ in range(spec.num_talkers)]
        beside = [asyncio.create_task(task()) for task in (self._operate, self._watch, self._watch_memory)]
        everything: list[asyncio.Task[None]] = [*streams, *talkers, *beside]
        await self._until_done(streams, everything)
        self._streams_go_on = False
        await self._until_done(talkers, everything)
        await self._desk.look_if_in_trouble()
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)

    async def _until_done(
        self, awaited: list[asyncio.Task[None]], everything: list[asyncio.Task[None]]
    ) -> None:
        pending = {task for task in everything if not task.done()}
        while any(not task.done() for task in awaited) and not self._desk.played.trouble:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is not None:
                    self._desk.trouble(f"the client failed: {task.exception()!r}")

    async def _end_idle(self) -> None:
        """Nothing is asked any more: the server must be as at its start, and answer."""
        await self._desk.post("/continue_generation", {})
        await self._bounded("the end", self._operator.wait_until_idle(self._talkers.max_held_tokens()))
        await self._operator.flush_idle("end")
        await self._bounded("the last request", self._desk.ask(LAST))

    async def _bounded(self, what: str, doing: Coroutine[Any, Any, Any]) -> None:
        try:
            await asyncio.wait_for(doing, self._desk.hang_s)
        except asyncio.TimeoutError:
            self._desk.trouble(f"hang: {what} took {self._desk.hang_s:g} s")

    async def _stream(self) -> None:
        for job in self._jobs:
            await asyncio.sleep(job.pause_s)
            await self._gate.wait()
            self._num_sent += 1
            ask = Ask(f"soak-{job.index:07d}", self._plan.prompts[job.prompt], job.num_outputs, job.abort)
            await self._desk.ask(ask)
            self._ended()

    async def _operate(self) -> None:
        for disturbance in self._plan.disturbances:
            while self._num_sent < disturbance.at_request:
                await asyncio.sleep(0.02)
            await self._operator.disturb(disturbance)

    async def _watch(self) -> None:
        """No news at all, or one request that all others overtake."""
        desk = self._desk
        while time.monotonic() - desk.news_s < desk.hang_s:
            await asyncio.sleep(min(1.0, desk.hang_s / 4))
            for rid, num_overtakers in desk.overtaken():
                desk.trouble(f"hang: {num_overtakers} later requests overtook {rid}; {desk.open_requests()}")
                return
        desk.trouble(f"hang: no token for {desk.hang_s:g} s; open: {desk.open_requests()}")

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            self._sample()

    def _sample(self) -> None:
        now_s = time.monotonic() - self._desk.start_s
        sample = MemorySample(now_s, len(self._desk.played.outcomes), self._rss_bytes())
        self._desk.played.memory.append(sample)
