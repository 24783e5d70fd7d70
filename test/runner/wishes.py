"""Policies that answer the four questions: as a test says, or at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness import SteppedScheduler
from sglang_layered.core.capability import QUESTIONS
from sglang_layered.hooks import LayerGroupPlan, SchedulerView, Snapshot

Answer = Callable[[Snapshot], Any]


class Wishes:
    """Plans a group a layer; answers the questions that it was given functions for, and keeps the views."""

    def __init__(self, **answers: Answer) -> None:
        self.can = frozenset(each for each, name in QUESTIONS.items() if name in answers)
        self.views: dict[str, list[Snapshot]] = {name: [] for name in answers}
        for name, answer in answers.items():
            setattr(self, name, self._noting(name, answer))

    def _noting(self, name: str, answer: Answer) -> Answer:
        def noted(view: Snapshot) -> Any:
            self.views[name].append(view)
            return answer(view)

        return noted

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        return LayerGroupPlan.even(view.num_layers, view.num_layers)


class AtRandom:
    """Any answers."""

    can = frozenset(QUESTIONS)
    seed = 0

    def __init__(self) -> None:
        self._dice = random.Random(self.seed)

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        return LayerGroupPlan.even(view.num_layers, self._dice.randint(1, view.num_layers))

    def order(self, view: Snapshot) -> Sequence[int]:
        return self._some(len(view.waiting))

    def hold(self, view: Snapshot) -> float:
        return self._dice.choice([0.0, 0.0, 0.0, 1.0, 1e6])

    def preempt(self, view: Snapshot) -> Sequence[int] | None:
        return self._dice.choice([None, self._some(len(view.waiting))])

    def decode_rows(self, view: Snapshot) -> Sequence[int] | None:
        return self._dice.choice([None, self._some(len(view.running))])

    def _some(self, count: int) -> list[int]:
        return self._dice.sample(range(count), self._dice.randint(0, count))


@contextmanager
def in_force(stepped: SteppedScheduler, policy: Any) -> Iterator[None]:
    """The server as if it had been started with this policy."""
    controls = stepped.loop.controls
    before = controls.policy
    controls.put_in_force(controls.config, policy, "test")
    try:
        yield
    finally:
        controls.put_in_force(controls.config, before, "test")
