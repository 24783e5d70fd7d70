"""Streaming sessions of the stepped scheduler, whose turns have known answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exact_scheduler import ExactScheduler

MOST_OPEN = 2
LONGEST = 300  # tokens before a turn: a session keeps its slots, so all of them must fit beside a prompt


class Conversations:
    """The sessions that are open; each has at most one turn on the way."""

    def __init__(self, exact: ExactScheduler) -> None:
        self._exact = exact
        self._history: dict[str, list[int]] = {}
        self._turns: dict[str, str] = {}  # request -> session
        self._names = itertools.count()
        self.stuck: set[str] = set()  # sessions that SGLang never closes

    @property
    def may_open(self) -> bool:
        return len(self._history) + len(self.stuck) < MOST_OPEN

    @property
    def idle(self) -> list[str]:
        """Sessions without a turn on the way."""
        return [name for name in self._history if name not in self._turns.values()]

    @property
    def ready(self) -> list[str]:
        """Sessions that may have one more turn."""
        return [name for name in self.idle if len(self._history[name]) <= LONGEST]

    def queued(self) -> set[str]:
        """Turns that wait, or that have been retracted.

        When one that waits is aborted, SGLang takes it for being on the way for ever, in any mode: the
        session refuses every later turn and cannot be closed. One that SGLang retracts while it decodes
        counts as finished there: when it is aborted later, the session goes on from the tokens it had.
        """
        waiting = {req.rid for req in self._exact.scheduler.waiting_queue}
        return {
            rid for rid in self._turns if rid in waiting or self._exact.stepped.reqs[rid].retraction_count
        }

    def open(self) -> str:
        name = f"s{next(self._names)}"
        self._exact.stepped.open_session(name)
        self._history[name] = []
        return name

    def turn(self, name: str, tokens: Sequence[int], max_new_tokens: int) -> str:
        """The client sends what is new; the prompt is the whole conversation."""
        rid = self._exact.send([*self._history[name], *tokens], max_new_tokens, name, tokens)
        self._turns[rid] = name
        return rid

    def ended(self, rid: str, *, answered: bool) -> None:
        """A request has ended; an aborted turn leaves the conversation as it was.

        In any mode SGLang goes on from an aborted turn that it had retracted before, so that this is no
        conversation any more; and a turn that it ends for want of KV slots stays on the way for its session,
        which is never closed.
        """
        name = self._turns.pop(rid, None)
        if name is None:
            return
        if not self._exact.stepped.reqs[rid].finished():
            self.stuck.add(name)
            del self._history[name]
        elif answered:
            self._history[name] = [*self._exact.prompts[rid], *self._exact.expected[rid]]
        elif self._exact.stepped.reqs[rid].retraction_count:
            self.close(name)

    def close(self, name: str) -> None:
        del self._history[name]
        self._exact.stepped.close_session(name)

    def close_all(self) -> None:
        """No turn may be on the way."""
        for name in self.idle:
            self.close(name)
