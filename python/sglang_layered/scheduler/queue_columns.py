"""What a policy sees of the prompts that wait, in columns: made in some microseconds for a hundred of them.

A prompt has a row from the first time that a policy sees it until it leaves the queue: to look at each of
them anew in every step would cost more than the step may spend on deciding.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sglang_layered.core.bounds import MOST_LOOKED_AT
from sglang_layered.core.questions import Numbers, Queue, SloClass
from sglang_layered.upstream.overtake import known_cached_tokens, look_up_cached_tokens

MOST_LOOKED_UP = 16  # prompts in the prefix cache, each time a policy is asked
NUM_ROWS = 4 * MOST_LOOKED_AT
TOKENS, PREFIX, PRIORITY, PASSED = range(4)


class QueueColumns:
    """Rows of prompts; those of prompts that left otherwise than by admission go when there are too many."""

    def __init__(self, scheduler: Any, facts: Callable[[Any], tuple[float, SloClass, int]]) -> None:
        """`facts` tells a prompt's arrival on rank 0's clock, its limits and its priority."""
        self._scheduler, self._facts = scheduler, facts
        self._rows: dict[Any, int] = {}
        self._free = [*range(NUM_ROWS)]
        self._numbers = np.zeros((4, NUM_ROWS), np.int64)
        self._times = np.zeros((3, NUM_ROWS))  # arrival, limits
        self._not_looked_up: dict[Any, None] = {}
        self._latest: Sequence[Any] = ()
        self._latest_rows = np.zeros(0, np.int64)
        self._left_out = self._latest_rows  # that have counted the admission to come

    def of(self, reqs: Sequence[Any], now_s: float) -> Queue:
        """Columns of these, in their order."""
        rows, self._left_out = self._rows_of(reqs), _NONE
        if self._not_looked_up:
            self._look_up(set(reqs))
        tokens, prefix_tokens, priority, passed = self._numbers.take(rows, 1)
        arrived_s, ttft_s, tbt_s = self._times.take(rows, 1)
        return Queue(tokens, prefix_tokens, now_s - arrived_s, ttft_s, tbt_s, priority, passed)

    def leave_out(self, reqs: Sequence[Any], chosen: Sequence[int]) -> None:
        """An answer lets only the `chosen` of these be admitted: the others were passed."""
        self._left_out = np.delete(self._rows_of(reqs), chosen) if len(chosen) < len(reqs) else _NONE
        self._numbers[PASSED, self._left_out] += 1

    def admitted(self, reqs: Iterable[Any], others: Sequence[Any]) -> None:
        """These have left the queue; the others were passed, once with being left out."""
        self._release(reqs)
        self._numbers[PASSED, self._left_out] -= 1
        self._numbers[PASSED, self._rows_of(others)] += 1
        self._left_out = _NONE

    def forget(self) -> None:
        """The server's limits have changed: all rows are written anew."""
        self._release([*self._rows])
        self._left_out = _NONE

    def _rows_of(self, reqs: Sequence[Any]) -> Numbers:
        if reqs == self._latest:
            return self._latest_rows
        rows = [*map(self._rows.get, reqs)]
        if None in rows:
            new = [req for req, row in zip(reqs, rows, strict=True) if row is None]
            if len(new) > len(self._free):
                self._release(self._rows.keys() - set(reqs))
            for req in new:
                self._write(req)
            rows = [*map(self._rows.get, reqs)]
        self._latest, self._latest_rows = reqs, np.array(rows, np.int64)
        return self._latest_rows

    def _write(self, req: Any) -> None:
        row = self._rows[req] = self._free.pop()
        arrived_s, limits, priority = self._facts(req)
        cached = known_cached_tokens(req)
        if cached is None and req.multimodal_inputs is None:
            self._not_looked_up[req] = None
        found, passed = cached or 0, getattr(req, "layered_passed", 0)
        self._numbers[:, row] = req.seqlen - found, found, priority, passed
        self._times[:, row] = arrived_s, *limits

    def _look_up(self, present: set[Any]) -> None:
        """A few of those that nobody has looked up in the prefix cache: until then all counts."""
        found = [req for req in self._not_looked_up if req in present]
        for req in found[:MOST_LOOKED_UP]:
            del self._not_looked_up[req]
            cached = look_up_cached_tokens(self._scheduler, req)
            self._numbers[: PREFIX + 1, self._rows[req]] = req.seqlen - cached, cached

    def _release(self, reqs: Iterable[Any]) -> None:
        """Who waits again has another length."""
        for req in reqs:
            row = self._rows.pop(req, None)
            if row is not None:
                req.layered_passed = int(self._numbers[PASSED, row])
                self._not_looked_up.pop(req, None)
                self._free.append(row)
        self._latest = ()


_NONE = np.zeros(0, np.int64)
