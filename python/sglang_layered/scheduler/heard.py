"""When each running request was heard last, on the clock that all ranks share.

It is asked several times a step about every running request. Almost all of those were heard at the step
before, so these are one set with one time; only a request that left the set has a time of its own. In most
steps not even the set changes: the list of those that were decoded is the one of the step before.
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
        self._in_order: list[Any] = []  # the recent ones as they were decoded; empty if others are among them
        self._decoded: list[list[Any]] = []  # got their next token since the last step
        self._began: set[Any] = set()  # whose prompt was computed since then

    def forget(self) -> None:
        """No longer wait for those that spoke."""
        self._decoded, self._began = [], set()

    def results_are_due(self, outcomes: Sequence[Outcome]) -> None:
        """SGLang is about to process these."""
        for outcome in outcomes:
            if outcome.seen.forward_mode.is_decode():
                self._decoded.append(list(outcome.seen.reqs))
            else:
                self._began.update(outcome.seen.reqs)

    def at(self, now_s: float) -> float | None:
        """A step begins: all of them are heard now. The longest time that one of them was silent."""
        decoded, began = self._decoded, self._began
        if not decoded and not began:
            return None
        self.forget()
        if self._in_order and decoded == [self._in_order] and not began:
            gap_s, self._recent_s = now_s - self._recent_s, now_s
            return gap_s
        longest_s = self._heard(set().union(*decoded), began, now_s)
        self._in_order = decoded[0] if len(decoded) == 1 and not began else []
        return longest_s

    def _heard(self, spoke: set[Any], began: set[Any], now_s: float) -> float | None:
        recent = self._recent
        odd = spoke - recent
        before_s = self._times(odd, len(odd) < len(spoke))
        if odd or len(spoke) < len(recent):
            for req in recent - spoke:
                req.layered_heard_s = self._recent_s
        self._recent, self._recent_s = spoke | began, now_s
        return now_s - min(before_s) if before_s else None

    def first_s(self, reqs: Sequence[Any], after_s: float) -> float | None:
        """When the one was heard that has been silent for longest, of those that were heard after a time."""
        if reqs and (reqs == self._in_order or self._recent.issuperset(reqs)):
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
