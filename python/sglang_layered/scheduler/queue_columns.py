"""What a policy sees of the prompts that wait, in columns: made in some microseconds for a hundred of them.

A prompt has a row from the first time that a policy sees it until it leaves the queue: to look at each of
them anew in every step would cost more than the step may spend on deciding.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, compress, count, islice
from operator import is_not
from typing import Any

import numpy as np

from sglang_layered.core.bounds import MOST_LOOKED_AT
from sglang_layered.core.questions import Numbers, Queue, SloClass
from sglang_layered.upstream.overtake import known_cached_tokens, look_up_cached_tokens

MOST_LOOKED_UP = 16  # prompts in the prefix cache, each time a policy is asked
MOST_PARTS = 16  # of the queue that stay as they were, between those that have left it
NUM_ROWS = 4 * MOST_LOOKED_AT


class QueueColumns:
    """Rows of prompts; those of prompts that left otherwise than by admission go when there are too many."""

    def __init__(self, scheduler: Any, facts: Callable[[Any], tuple[float, SloClass, int]]) -> None:
        """`facts` tells a prompt's arrival on rank 0's clock, its limits and its priority."""
        self._scheduler, self._facts = scheduler, facts
        self._rows: dict[Any, int] = {}
        self._free = [*range(NUM_ROWS)]
        # Arrays apart: to take the rows of one of two dimensions apart costs more than a `take` of each.
        self._tokens, self._prefix_tokens, self._priority, self._passed = (
            np.zeros(NUM_ROWS, np.int64) for _ in range(4)
        )
        self._arrived_s, self._ttft_s, self._tbt_s = (np.zeros(NUM_ROWS) for _ in range(3))
        self._latest: Sequence[Any] = ()  # prompts that were asked about
        self._latest_rows = self._left_out = _NONE  # theirs; of those that have counted an admission to come
        self._not_looked_up: dict[Any, None] = {}  # of the latest
        self._with_images: set[Any] = set()

    def of(self, reqs: Sequence[Any], now_s: float) -> Queue:
        """Columns of these, in their order."""
        rows, self._left_out = self._rows_of(reqs), _NONE
        if self._not_looked_up:
            self.look_up()
        return Queue(
            self._tokens.take(rows),
            self._prefix_tokens.take(rows),
            now_s - self._arrived_s.take(rows),
            self._ttft_s.take(rows),
            self._tbt_s.take(rows),
            self._priority.take(rows),
            self._passed.take(rows),
        )

    def without_images(self, reqs: Sequence[Any]) -> Sequence[Any]:
        """Those of them that are text alone."""
        self._rows_of(reqs)
        return [req for req in reqs if req not in self._with_images] if self._with_images else reqs

    def leave_out(self, reqs: Sequence[Any], chosen: Sequence[int]) -> None:
        """An answer lets only the `chosen` of these be admitted: the others were passed."""
        if len(chosen) == len(reqs):
            return
        is_left_out = np.ones(len(reqs), np.bool_)
        is_left_out[chosen] = False
        self._left_out = self._rows_of(reqs)[is_left_out]
        self._passed[self._left_out] += 1

    def admitted(self, reqs: Iterable[Any], others: Sequence[Any]) -> None:
        """These have left the queue; the others were passed, once with being left out."""
        self._passed[self._left_out] -= 1
        self._passed[self._rows_of(others)] += 1
        self._release(reqs)
        self._left_out = _NONE

    def forget(self) -> None:
        """The server's limits have changed: all rows are written anew."""
        self._release([*self._rows])
        self._latest, self._left_out = (), _NONE

    def look_up(self) -> None:
        """A few of those that nobody has looked up in the prefix cache: until then all counts."""
        for req in [*islice(self._not_looked_up, MOST_LOOKED_UP)]:
            del self._not_looked_up[req]
            self._look_up(req)

    def still_fitting(self, reqs: Sequence[Any], max_tokens: int) -> list[Any]:
        """The first of these that `max_tokens` hold now: what was cached of them may have been evicted."""
        found: list[Any] = []
        lookups_left = MOST_LOOKED_UP
        for req in reqs:
            row = self._rows[req]
            if self._prefix_tokens[row]:
                if not lookups_left:
                    break
                lookups_left -= 1
                self._look_up(req)
            max_tokens -= int(self._tokens[row])
            if max_tokens < 0:
                break
            found.append(req)
        return found

    def _look_up(self, req: Any) -> None:
        row, cached = self._rows[req], look_up_cached_tokens(self._scheduler, req)
        self._tokens[row], self._prefix_tokens[row] = req.seqlen - cached, cached

    def _rows_of(self, reqs: Sequence[Any]) -> Numbers:
        latest = self._latest
        if reqs == latest:
            return self._latest_rows
        # Who stays mostly keeps the order: to look each of them up would cost more than all else.
        parts: list[Numbers] = []
        gone: list[Any] = []
        start = at = 0
        while at < len(latest) and start < len(reqs) and len(parts) < MOST_PARTS:
            are_others = map(is_not, latest[at:], reqs[start:])
            end = at + next(compress(count(), are_others), min(len(latest) - at, len(reqs) - start))
            parts.append(self._latest_rows[at:end])
            gone += latest[end : end + 1]
            start, at = start + end - at, end + 1
        for req in chain(gone, latest[at:]) if self._not_looked_up else ():
            self._not_looked_up.pop(req, None)
        rows = [self._row_of(req, reqs) for req in reqs[start:]]
        self._latest, self._latest_rows = reqs, np.concatenate([*parts, np.array(rows, np.int64)])
        return self._latest_rows

    def _row_of(self, req: Any, reqs: Sequence[Any]) -> int:
        cached = known_cached_tokens(req)
        if req.multimodal_inputs is not None:
            self._with_images.add(req)
        elif cached is None:
            self._not_looked_up[req] = None
        row = self._rows.get(req)
        if row is None:
            if not self._free:
                self._release(self._rows.keys() - set(reqs))
            row = self._rows[req] = self._free.pop()
            self._arrived_s[row], limits, self._priority[row] = self._facts(req)
            self._ttft_s[row], self._tbt_s[row] = limits
            found, self._passed[row] = cached or 0, getattr(req, "layered_passed", 0)
            self._tokens[row], self._prefix_tokens[row] = req.seqlen - found, found
        return row

    def _release(self, reqs: Iterable[Any]) -> None:
        """Who waits again has another length."""
        for req in reqs:
            row = self._rows.pop(req, None)
            if row is not None:
                req.layered_passed = int(self._passed[row])
                self._not_looked_up.pop(req, None)
                self._with_images.discard(req)
                self._free.append(row)


_NONE = np.zeros(0, np.int64)
