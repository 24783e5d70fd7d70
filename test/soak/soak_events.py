"""What the server's event file says: steps that computed a request after its abort; what is in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from event_tail import EventTail

from soak_asks import AbortAll, Outcome, abort_read_s

# SGLang marks a running request as aborted and takes it out after the step that is launched next.
MAX_STEPS_AFTER_ABORT = 1
POLL_S = 0.01


def late_steps(
    outcomes: Sequence[Outcome], abort_alls: list[AbortAll], events: Iterator[dict[str, Any]]
) -> list[str]:
    """One line for each request that went on being computed although the server had read its abort.

    Layered groups name their prompts, so this sees a cohort that carries an aborted prompt through its layers
    also when no token comes of it.
    """
    read_s: dict[str, float] = {}
    for outcome in outcomes:
        if outcome.ending == "abort" and (when_s := abort_read_s(outcome, abort_alls)) is not None:
            read_s[outcome.ask.rid] = when_s
    late: dict[str, int] = {}
    for event in events:
        if event["event"] != "step_done":
            continue
        for rid in {*event["decode"], *event["prompt"]} & read_s.keys():
            late[rid] = late.get(rid, 0) + (event["start_s"] > read_s[rid])
    return [
        f"late answer: {number} steps that began after the server had read the abort of {rid} computed it"
        for rid, number in late.items()
        if number > MAX_STEPS_AFTER_ABORT
    ]


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """All events of a file, in order."""
    with path.open("rb") as lines:
        for line in lines:
            yield orjson.loads(line)


class NewEvents:
    """The events that come from now on."""

    def __init__(self, path: Path) -> None:
        self._tail = EventTail(path, path.stat().st_size if path.exists() else 0)

    async def wait_for(
        self, is_it: Callable[[dict[str, Any]], bool], timeout_s: float
    ) -> dict[str, Any] | None:
        """The next event of a kind, or None when it does not come in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for event in self._tail.new():
                if is_it(event):
                    return event
            await asyncio.sleep(POLL_S)
        return None
