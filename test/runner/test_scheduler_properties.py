"""Any sequence of operations on the layered scheduler; ExactScheduler checks what must hold after each.

About 2,000 operations by default, always the same ones. `--hypothesis-profile=long` makes 100,000 others
(with this file or folder on the command line: its conftest declares the profile).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    run_state_machine_as_test,
)

from harness import SteppedScheduler
from scheduler_machine import SchedulerMachine
from sglang_layered.core import bounds
from sglang_layered.scheduler import rank_clock

DEFAULT = settings(
    max_examples=80,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # to shrink takes many minutes, and the steps are printed anyway
    suppress_health_check=list(HealthCheck),
)


OVERTAKING = {"layered_max_parked": 1, "layered_short_tokens": 100}
CASES: dict[str, tuple[dict[str, Any], tuple[int | None, ...]]] = {
    "in order": ({}, (None,)),
    "short ones overtake": (OVERTAKING, (None,)),
    "by priority": (OVERTAKING, (0, 5, 0, 20)),
    "a policy answers at random": (OVERTAKING | {"layered_policy": "wishes:AtRandom"}, (None,)),
}


@pytest.fixture
def silence() -> Iterator[None]:
    """SGLang warns of every retraction and every change of settings: too much to keep for a failure."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize(("flags", "priorities"), CASES.values(), ids=CASES)
def test_any_sequence_of_operations(
    stepped: SteppedScheduler,
    flags: dict[str, Any],
    priorities: tuple[int | None, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "MOST_PASSED", 8)
    monkeypatch.setattr(bounds, "MOST_HELD_S", 5.0)
    seconds = map(float, itertools.count())  # a step takes one, so that what fails fails again
    monkeypatch.setattr(rank_clock, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    is_default = settings.get_current_profile_name() != "long"
    default = settings(DEFAULT, max_examples=40) if "layered_policy" in flags else DEFAULT
    by_priority = priorities != (None,)
    with stepped.queue_policy("fcfs", priority=by_priority, preempts=by_priority):
        run_state_machine_as_test(
            partial(SchedulerMachine, stepped, flags, priorities),
            settings=default if is_default else settings.get_profile("long"),
        )
