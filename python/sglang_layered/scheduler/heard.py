"""When each running request was heard last, on the clock that all ranks share.

It is asked several times a step about every running request. Almost all of those were heard at the step
before, so these are one set with one time; only a request that left the set has a time of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_layered.scheduler.results import Outcome


class Heard:
    """Collects whose tokens a step made; from the next step's start on they are heard.

    A request that has ended, or was retracted, is counted as well: it does not ask any more, or begins anew.
    """

    def __init__(self) -> None:
        self._recent: set[Any] = set()  # were heard last, all at once
        self._recent_s = 0.0
        self._spoke: set[Any] = set()  # got their next token since the last step
        self._began: set[Any] = set()  # whose prompt was computed since then

    def forget(self) -> None:
        """No longer wait for those that spoke."""
        self._spoke, self._began = set(), set()

    def results_are_due(self, outcomes: Sequence[Outcome]) -> None:
        """SGLang is about to process these."""
        for outcome in outcomes:
            (self._spoke if outcome.seen.forward_mode.is_decode() else self._began).update(outcome.seen.reqs)

    def at(self, now_s: float) -> float | None:
        """A step begins: all of them are heard now. The longest time that one of them was silent."""
        spoke, recent = self._spoke, self._recent
        if not spoke and not self._began:
            return None
        odd = spoke - recent
        before_s = self._times(odd, len(odd) < len(spoke))
        if odd or len(spoke) < len(recent):
            for req in recent - spoke:
                req.layered_heard_s = self._recent_s
        spoke |= self._began
        self._recent, self._recent_s = spoke, now_s
        self.forget()
        return now_s - min(before_s) if before_s else None

    def first_s(self, reqs: Sequence[Any], after_s: float) -> float | None:
        """When the one was heard that has been silent for longest, of those that were heard after a time."""
        if reqs and self._recent.issuperset(reqs):
            return self._recent_s if self._recent_s > after_s else None
        odd = set(reqs) - self._recent
        times_s = self._times(odd, len(odd) < len(reqs))
        return min((time_s for time_s in times_s if time_s > after_s), default=None)

    def _times(self, odd: set[Any], are_others: bool) -> list[float]:
        """The different times at which these, and others of the recent ones, were heard.

        One that decodes from before the policy came into force has none.
        """
        times_s = [self._recent_s] if are_others else []
        return times_s + [req.layered_heard_s for req in odd if hasattr(req, "layered_heard_s")]
