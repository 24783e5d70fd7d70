"""What a policy sees of the running requests, in columns: made in some microseconds for hundreds of them.

What does not change while a request runs is written once, into the row of its slot in SGLang's request pool.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sglang_layered.core.questions import Numbers, Running, SloClass
from sglang_layered.scheduler.rank_clock import LastTokenTimes


class RunningColumns:
    """Rows by request slot; a row is of the request that was last seen there."""

    def __init__(
        self, num_slots: int, facts: Callable[[Any], tuple[float, SloClass, int]], times: LastTokenTimes
    ) -> None:
        """`facts` tells a request's arrival on rank 0's clock, its limits and its priority."""
        self._facts, self._times = facts, times
        self._owners: list[Any] = [None] * num_slots
        self._latest: Sequence[Any] = ()  # requests whose rows are known to be theirs, and their slots
        self._latest_slots = b""
        self._latest_columns: tuple[Any, ...] = ()  # what does not change, of these
        self._prompt_tokens = np.zeros(num_slots, np.int64)
        self._priority = np.zeros(num_slots, np.int64)
        self._sat_out = np.zeros(num_slots, np.int64)
        self._arrived_s, self._ttft_s, self._tbt_s = (np.zeros(num_slots) for _ in range(3))
        self._step = 0  # of the latest `sits_out`

    def forget(self) -> None:
        """Limits have changed: all rows are written anew."""
        self._owners, self._latest = [None] * len(self._owners), ()

    def of(self, reqs: Sequence[Any], slots: Numbers, kv_tokens: Numbers, now_s: float) -> Running:
        """Columns of these; `kv_tokens` lie in the KV cache, so one token more is in the context of each."""
        # Those who wait again may come back all together, in other slots.
        if reqs != self._latest or slots.tobytes() != self._latest_slots:
            self._write(reqs, slots)
        before_output, arrived_s, ttft_s, tbt_s, priority = self._latest_columns
        age_s, last_s = now_s - arrived_s, self._times.last_of(reqs)
        since_s = (
            np.full(len(reqs), now_s - last_s)
            if isinstance(last_s, float)
            else np.where(np.isnan(last_s), age_s, now_s - last_s)
        )
        sat_out = self._sat_out.take(slots)
        return Running(
            kv_tokens + 1, kv_tokens - before_output, age_s, since_s, ttft_s, tbt_s, priority, sat_out
        )

    def begin(self, step: int) -> None:
        """The latest choice was made for `step` - 1, or all have decoded since."""
        if step - self._step > 1:
            self._sat_out[:] = 0
        self._step = step

    def all_decode(self, slots: Numbers) -> None:
        """The requests in these slots decode."""
        self._sat_out[slots] = 0

    def decode(self, slots: Numbers, keep: Sequence[int]) -> None:
        """Of the requests in these slots those at `keep` decode, and the others sit the step out."""
        counts = self._sat_out[slots] + 1
        counts[list(keep)] = 0
        self._sat_out[slots] = counts

    def _write(self, reqs: Sequence[Any], slots: Numbers) -> None:
        owners = self._owners
        for slot, req in zip(slots.tolist(), reqs, strict=True):
            if owners[slot] is req:
                continue
            owners[slot] = req
            arrived_s, limits, priority = self._facts(req)
            self._arrived_s[slot], self._priority[slot] = arrived_s, priority
            self._ttft_s[slot], self._tbt_s[slot] = limits
            self._prompt_tokens[slot], self._sat_out[slot] = len(req.origin_input_ids), 0
        self._latest, self._latest_slots = list(reqs), slots.tobytes()
        before_output = self._prompt_tokens.take(slots) - 1
        columns = (self._arrived_s, self._ttft_s, self._tbt_s, self._priority)
        self._latest_columns = (before_output, *(column.take(slots) for column in columns))
        for column in self._latest_columns:
            column.flags.writeable = False  # it is shown in every step
