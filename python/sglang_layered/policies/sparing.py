"""Requests that have time sit a step out: a prompt's step is then shorter, or may be longer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.auto.step_times import alone_lines
from sglang_layered.core.capability import Capability
from sglang_layered.core.pacing import Decision, PaceView, QueueView
from sglang_layered.core.questions import Running, Seconds, Snapshot

CATCH_UP_STEPS = (
    2  # that a row needs after it has sat out: the overlap scheduler hands a token out a step later
)


@dataclass
class SparingPolicy(AutoPolicy):
    """Steps as `auto` makes them, by deadlines that `due_s` tells, and only for those who need a token."""

    can: ClassVar[frozenset[Capability]] = AutoPolicy.can | {Capability.CHOOSES_DECODES}
    keeps_gaps: ClassVar[bool] = True  # a gap above the limit is a missed deadline
    _left_s: float | None = None  # until the first who sits out must decode, or who decodes is late
    _spares: bool = False  # somebody sits the next step out
    _has_spared: bool = False  # or one of the latest two

    def due_s(self, running: Running) -> Seconds:
        """Seconds until each request must have its next token; below 0: it is late."""
        raise NotImplementedError

    def decode_rows(self, view: Snapshot) -> Sequence[int] | None:
        """All, if one of them could not wait for a group and catch up after it; else the one due first.

        Never some: the experts that a few rows read are most of those that all read, so a step that spares
        half of them is hardly shorter, and they need one of their own later.
        """
        running = view.running
        spared = self._spares
        self._left_s, self._spares, self._has_spared = None, False, spared
        if not (len(running) and view.flying):
            return None
        flight, due_s = view.flying[-1], self.due_s(running)
        # Of a step of the cohort's layers beside nobody.
        alone_s, layer_s = self.times.predict_line(*alone_lines(self.sizes, flight.tokens))
        catch_up_s = CATCH_UP_STEPS * (self._decode_s(running) + alone_s + layer_s)
        first = int(due_s.argmin())
        first_s = float(due_s[first])
        if first_s <= 0:  # who is late already hurries nobody
            first_s = float(due_s[due_s > 0].min(initial=inf))
        if first_s == inf:
            return None
        group = -(-flight.num_layers // max(flight.tokens // self.group_tokens, 1))
        self._spares = first_s >= alone_s + group * layer_s + catch_up_s
        self._has_spared |= self._spares
        # Of those who have sat out no token is on its way: this step's comes out after the next one.
        self._left_s = first_s - catch_up_s if self._spares or spared else first_s
        return [first] if self._spares else None

    def next_layers(self, view: PaceView) -> Decision:
        """As `auto`, until the first deadline."""
        known = self._left_s is not None
        return super().next_layers(replace(view, due_s=self._left_s) if known else view)

    def cohort_tokens(self, view: QueueView) -> int:
        """As `auto`, with the time that there was when it was last asked who decodes."""
        longer = self._left_s is not None and (view.due_s or 0) < self._left_s
        return super().cohort_tokens(replace(view, due_s=self._left_s) if longer else view)

    def observe_gap(self, gap_s: float, was_planned: bool) -> None:
        """As `auto`; the gap of somebody who sat out tells nothing of what passes between two steps."""
        if not self._has_spared:
            super().observe_gap(gap_s, was_planned)
        elif was_planned and self.keeps_gaps and self.tbt_limit_s is not None:
            if gap_s <= self.tbt_limit_s:
                self.margin.kept()
            elif self._fits:
                self.margin.missed(gap_s / self.tbt_limit_s - 1)

    def _decode_s(self, running: Running) -> float:
        """A step in which all decode, and what passes between two."""
        return self.decode_s(running) + self.overhead.value_s
