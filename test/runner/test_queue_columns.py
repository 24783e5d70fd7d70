"""What a policy sees of the prompts that wait: columns as a slow definition has them, at a fixed cost."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from sglang_layered.core.bounds import MOST_LOOKED_AT
from sglang_layered.core.questions import Queue, SloClass, Waiting
from sglang_layered.scheduler import queue_columns
from sglang_layered.scheduler.queue_columns import MOST_LOOKED_UP, NUM_ROWS, QueueColumns


@dataclass(eq=False)
class Prompt:
    """Stands in for a request."""

    seqlen: int
    arrived_s: float
    cached: int
    multimodal_inputs: Any = None
    passed: int = 0  # as the slow definition counts
    looked_up: bool = False
    slo: SloClass = field(default_factory=lambda: SloClass(2.0, 0.1))


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> QueueColumns:
    def look_up(scheduler: Any, req: Prompt) -> int:
        req.looked_up = True
        return req.cached

    monkeypatch.setattr(queue_columns, "known_cached_tokens", lambda req: None)
    monkeypatch.setattr(queue_columns, "look_up_cached_tokens", look_up)
    return QueueColumns(SimpleNamespace(), lambda req: (req.arrived_s, req.slo, req.seqlen % 3))


def row(req: Prompt, now_s: float) -> Waiting:
    found = req.cached if req.looked_up else 0
    age_s, priority = now_s - req.arrived_s, req.seqlen % 3
    return Waiting(req.seqlen - found, found, age_s, req.slo, priority, req.passed)


@pytest.mark.parametrize("seed", range(6))
def test_any_queue_is_shown_as_it_is(columns: QueueColumns, seed: int) -> None:
    """More prompts come than there are rows; some leave unseen, some come back longer, first in the queue."""
    dice, queue, gone = random.Random(seed), list[Prompt](), list[Prompt]()
    for step in range(150):
        for _ in range(dice.randint(0, 12)):
            queue.append(Prompt(dice.randint(2, 900), step, dice.randint(0, 1)))
        if gone and dice.random() < 0.3:
            back = gone.pop()
            back.seqlen, back.looked_up = back.seqlen + 5, False
            queue.insert(0, back)
        queue = [req for req in queue if dice.random() > 0.02]  # aborted
        if dice.random() < 0.1:
            dice.shuffle(queue)
        seen = queue[:MOST_LOOKED_AT]
        if not seen:
            continue
        assert list(columns.of(seen, step + 0.5)) == [row(req, step + 0.5) for req in seen]
        chosen = dice.sample(range(len(seen)), dice.randint(0, len(seen)))
        columns.leave_out(seen, chosen)
        left_out = [req for index, req in enumerate(seen) if index not in chosen]
        if chosen and dice.random() < 0.5:
            taken = [seen[index] for index in chosen[:8]]
            queue = [req for req in queue if req not in taken]
            columns.admitted(taken, queue[:MOST_LOOKED_AT])
            gone += taken
            for req in queue[:MOST_LOOKED_AT]:
                req.passed += req not in left_out
        for req in left_out:
            req.passed += 1


def test_a_few_are_looked_up_each_time_and_images_never(columns: QueueColumns) -> None:
    queue = [Prompt(10, 0.0, 4, multimodal_inputs=object() if index == 3 else None) for index in range(40)]
    for times in (1, 2, 3, 4):
        columns.of(queue, 1.0)
        assert sum(req.looked_up for req in queue) == min(times * MOST_LOOKED_UP, 39)
    assert not queue[3].looked_up


def test_images_are_told_apart(columns: QueueColumns) -> None:
    queue = [Prompt(10, 0.0, 4, multimodal_inputs=object() if index % 3 == 0 else None) for index in range(9)]
    assert columns.without_images(queue) == [queue[index] for index in (1, 2, 4, 5, 7, 8)]
    columns.admitted(queue[:1], queue[1:])
    assert columns.without_images(queue[1:]) == [queue[index] for index in (1, 2, 4, 5, 7, 8)]
    columns.admitted([queue[3], queue[6]], queue[7:])
    assert not columns._with_images


def test_other_limits_are_seen_at_once(columns: QueueColumns) -> None:
    queue = [Prompt(10, 0.0, 0)]
    columns.of(queue, 1.0)
    columns.leave_out(queue, [])
    queue[0].slo = SloClass(9.0)
    columns.forget()
    assert columns.of(queue, 1.0)[0] == Waiting(10, 0, 1.0, SloClass(9.0), 1, 1)


def test_what_has_been_seen_costs_the_same_however_many_wait(columns: QueueColumns) -> None:
    queue = [Prompt(10, 0.0, 0) for _ in range(NUM_ROWS)]
    counts = []
    for number in (8, MOST_LOOKED_AT):
        for _ in range(number):
            columns.of(queue[:number], 1.0)
        counts.append(calls_of(columns, queue[:number]))
    assert counts[0] == counts[1] < 8


def calls_of(columns: QueueColumns, reqs: list[Prompt]) -> int:
    """Python functions that showing them calls."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        columns.of(reqs, 2.0)
    finally:
        sys.setprofile(None)
    return count


def test_rows_and_columns_are_the_same() -> None:
    rows = [Waiting(5, 1, 0.5, SloClass(1.0), 2, 3), Waiting(6)]
    queue = Queue.of(rows)
    assert list(queue) == queue[:] == rows and queue[-1] == rows[-1] and len(queue) == 2
    assert Queue.of(queue) is queue and not Queue.of()
