"""Clients with conversations: streaming sessions whose turns follow each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from soak_asks import Ask
from soak_desk import Desk
from soak_operator import SESSION_CAPACITY, Operator
from soak_plan import Conversation


class Talkers:
    """Play the conversations of a plan, `num_talkers` at a time, while `goes_on` says so.

    A conversation ends at its first turn that does not end well. SGLang 0.5.17 keeps a turn in mind that was
    aborted while it waited: its session takes no more turns, cannot be closed, and keeps its KV until a
    flush. So such a session is left alone, and its talker goes on after the next flush.
    """

    def __init__(
        self, desk: Desk, operator: Operator, gate: asyncio.Event, goes_on: Callable[[], bool]
    ) -> None:
        self._desk, self._operator, self._gate, self._goes_on = desk, operator, gate, goes_on
        self._held_by_left: list[tuple[int, int]] = []  # flushes before it, tokens

    def max_held_tokens(self) -> int:
        """KV slots that sessions may hold now although no conversation is going on."""
        flushes = self._operator.num_flushes
        return sum(tokens for before, tokens in self._held_by_left if before == flushes)

    async def talk(self, conversations: Iterator[Conversation]) -> None:
        """One talker."""
        for conversation in conversations:
            if not self._goes_on():
                return
            flushes = self._operator.num_flushes
            if await self._converse(conversation):
                continue
            while self._goes_on() and self._operator.num_flushes == flushes:
                await asyncio.sleep(0.05)

    async def _converse(self, conversation: Conversation) -> bool:
        """Whether it was played to its end and closed."""
        session = f"talk-{conversation.index:06d}"
        await self._gate.wait()
        opening = {"capacity_of_str_len": SESSION_CAPACITY, "session_id": session, "streaming": True}
        await self._desk.post("/open_session", opening)
        said: tuple[int, ...] = ()
        for number, turn in enumerate(conversation.turns):
            await asyncio.sleep(turn.pause_s)
            await self._gate.wait()
            rid = f"{session}-{number:02d}"
            ask = Ask(rid, said + turn.tokens, turn.num_outputs, turn.abort, session, len(said))
            outcome = await self._desk.ask(ask)
            if outcome.ending != "length":
                self._desk.played.operator["conversations left"] += 1
                held = len(ask.prompt) + len(outcome.tokens)
                self._held_by_left.append((self._operator.num_flushes, held))
                return False
            said = (*ask.prompt, *outcome.tokens)
        await self._desk.post("/close_session", {"session_id": session})
        self._desk.played.operator["conversations"] += 1
        return True
