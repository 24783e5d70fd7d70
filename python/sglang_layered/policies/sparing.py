"""Requests that have time sit a step out, so that a prompt's step is shorter, or may be longer. No policy yet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.auto.step_times import amounts
from sglang_layered.core.capability import Capability
from sglang_layered.core.pacing import Decision, PaceView, QueueView, StepLoad
from sglang_layered.core.questions import Flying, Running, Seconds, Snapshot

CATCH_UP_STEPS = (
    2  # that a row needs after it has sat out: the overlap scheduler hands a token out a step later
)


@dataclass
class SparingPolicy(AutoPolicy):
    """Steps as `auto` makes them, by deadlines that `due_s` tells, and only for those who need a token."""

    can: ClassVar[frozenset[Capability]] = AutoPolicy.can | {Capability.CHOOSES_DECODES}
    _left_s: float | None = None  # until the first who sits out must decode, or who decodes is late
    _spares: bool = False  # somebody sits out

    def due_s(self, running: Running) -> Seconds:
        """Seconds until each request must have its next token; below 0: it is late."""
        raise NotImplementedError

    def decode_rows(self, view: Snapshot) -> Sequence[int] | None:
        """Those who could not wait for a group and catch up after it, at least the one that is due first."""
        running = view.running
        self._left_s, self._spares = None, False
        if not (len(running) and view.flying):
            return None
        due_s, catch_up_s = self.due_s(running), CATCH_UP_STEPS * self._decode_s(running)
        needs = due_s < self._group_s(view.flying[-1]) + catch_up_s
        needs[int(due_s.argmin())] = True
        spared_s = due_s[~needs]
        hurried_s = due_s[needs & (due_s > 0)]
        self._spares = bool(spared_s.size)
        ends = [float(hurried_s.min())] if hurried_s.size else []
        if self._spares:
            ends.append(float(spared_s.min()) - catch_up_s)
        self._left_s = min(ends, default=None)
        return np.flatnonzero(needs).tolist() if self._spares else None

    def next_layers(self, view: PaceView) -> Decision:
        """As `auto`, until the first deadline."""
        known = self._left_s is not None
        return super().next_layers(replace(view, due_s=self._left_s) if known else view)

    def cohort_tokens(self, view: QueueView) -> int:
        """As `auto`, with the time that there was when it was last asked who decodes."""
        longer = self._left_s is not None and (view.due_s or 0) < self._left_s
        return super().cohort_tokens(replace(view, due_s=self._left_s) if longer else view)

    def observe_gap(self, gap_s: float, was_planned: bool) -> None:
        """Gaps of those who sat out are meant to be long."""
        if not self._spares:
            super().observe_gap(gap_s, was_planned)

    def _decode_s(self, running: Running) -> float:
        """A step in which all decode, and what passes between two."""
        load = StepLoad(len(running), int(running.context_tokens.sum()))
        return self.times.predict(amounts(self.sizes, load)) + self.overhead.value_s

    def _group_s(self, flight: Flying) -> float:
        """A step of one of the cohort's groups by the paper's rule, beside nobody."""
        groups = min(max(-(-flight.tokens // self.group_tokens), 1), flight.num_layers)
        load = StepLoad(0, 0, (flight.tokens,), (0,), flight.num_layers / groups)
        return self.times.predict(amounts(self.sizes, load))
