"""What tests of a policy share: a scheduler where short ones overtake, who decodes, what was answered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from exact_scheduler import ExactScheduler
from exact_swap import exact_scheduler
from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.core.events import CohortAdmitted, PolicyAnswered
from sglang_layered.core.questions import Snapshot

NUM_LAYERS = 7
ON = {"layered_max_parked": 1, "layered_short_tokens": 64, "slo_tbt_ms": 1e6}


@pytest.fixture
def exact(stepped: SteppedScheduler) -> Iterator[ExactScheduler]:
    with exact_scheduler(stepped, NUM_LAYERS, **ON) as exact:
        yield exact
        exact.settle()


def everybody(view: Snapshot) -> range:
    return range(len(view.waiting))


def start_decoding(exact: ExactScheduler, count: int = 1) -> list[str]:
    rids = [exact.send(prompt(10 + seed, seed), 60) for seed in range(count)]
    exact.step(3)
    return rids


def admitted(exact: ExactScheduler) -> list[tuple[str, ...]]:
    found = [event for event in exact.stepped.events if isinstance(event, CohortAdmitted)]
    return [tuple(event.prompt_rows) for event in found]


def answers(exact: ExactScheduler, question: str) -> list[tuple[str, ...]]:
    found = [event for event in exact.stepped.events if isinstance(event, PolicyAnswered)]
    return [event.request_ids for event in found if event.question == question]
