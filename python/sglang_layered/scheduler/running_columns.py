"""What a policy sees of the running requests, in columns: made in some microseconds for hundreds of them.

What does not change while a request runs is written once, into the row of its slot in SGLang's request pool.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sglang_layered.core.questions import Numbers, Running, Seconds, SloClass
from sglang_layered.scheduler.rank_clock import LastTokenTimes


class RunningColumns:
    """Rows by request slot; a row is of the request that was last seen there."""

    def __init__(
        self, num_slots: int, facts: Callable[[Any], tuple[float, SloClass, int]], times: LastTokenTimes
    ) -> None:
        """`facts` tells a request's arrival on rank 0's clock, its limits and its priority."""
        self._facts, self._times = facts, times
        self._owners: list[Any] = [None] * num_slots
        self._latest: Sequence[Any] = ()  # requests whose rows are known to be theirs
        self._latest_tensor: torch.Tensor | None = None  # their slots, as SGLang keeps them
        self._latest_slots = _NONE
        self._latest_columns: tuple[Any, ...] = ()  # what does not change, of these
        self._prompt_tokens = np.zeros(num_slots, np.int64)
        self._priority = np.zeros(num_slots, np.int64)
        self._sat_out = np.zeros(num_slots, np.int64)  # a new array for each change: columns are made of it
        self._arrived_s, self._ttft_s, self._tbt_s = (np.zeros(num_slots) for _ in range(3))
        self._step = 0  # of the latest `sits_out`

    def forget(self) -> None:
        """Limits have changed: all rows are written anew."""
        self._owners, self._latest = [None] * len(self._owners), ()

    def of(
        self, reqs: Sequence[Any], slots: torch.Tensor, kv_tokens: torch.Tensor, now_s: float
    ) -> "ShownRunning":
        """Columns of these; `kv_tokens` lie in the KV cache, so one token more is in the context of each."""
        if reqs != self._latest or slots is not self._latest_tensor:
            self._find(reqs, slots)
        slots_now, sat_out, last_s = self._latest_slots, self._sat_out, self._times.last_of(reqs)
        prompt_tokens, arrived_s, ttft_s, tbt_s, priority = self._latest_columns
        makers = {
            "context_tokens": lambda: kv_tokens.numpy() + 1,
            "output_tokens": lambda: kv_tokens.numpy() + 1 - prompt_tokens,
            "age_s": lambda: now_s - arrived_s,
            "since_token_s": lambda: _since(now_s, last_s, arrived_s),
            "sat_out": lambda: sat_out.take(slots_now),
        }
        return ShownRunning(makers, ttft_s=ttft_s, tbt_s=tbt_s, priority=priority)

    def begin(self, step: int) -> None:
        """The latest choice was made for `step` - 1, or all have decoded since."""
        if step - self._step > 1:
            self._sat_out = np.zeros_like(self._sat_out)
        self._step = step

    def decode(self, keep: Sequence[int] | None) -> None:
        """Of the latest requests those at `keep` decode, None: all; the others sit the step out."""
        counts = np.zeros_like(self._sat_out)
        if keep is not None:
            counts[self._latest_slots] = self._sat_out.take(self._latest_slots) + 1
            counts[self._latest_slots[keep]] = 0
        self._sat_out = counts

    def _find(self, reqs: Sequence[Any], slots: torch.Tensor) -> None:
        """SGLang makes new tensors for the same slots; who waits again may come back in other ones."""
        numbers = slots.numpy()
        if reqs != self._latest or numbers.tobytes() != self._latest_slots.tobytes():
            self._latest, self._latest_slots = list(reqs), numbers
            self._write()
        self._latest_tensor, self._latest_slots = slots, numbers

    def _write(self) -> None:
        owners, slots, self._sat_out = self._owners, self._latest_slots, self._sat_out.copy()
        for slot, req in zip(slots.tolist(), self._latest, strict=True):
            if owners[slot] is req:
                continue
            owners[slot] = req
            arrived_s, limits, priority = self._facts(req)
            self._arrived_s[slot], self._priority[slot] = arrived_s, priority
            self._ttft_s[slot], self._tbt_s[slot] = limits
            self._prompt_tokens[slot], self._sat_out[slot] = len(req.origin_input_ids), 0
        columns = (self._prompt_tokens, self._arrived_s, self._ttft_s, self._tbt_s, self._priority)
        self._latest_columns = tuple([column.take(slots) for column in columns])
        for column in self._latest_columns:
            column.flags.writeable = False  # it is shown in every step


class ShownRunning(Running):
    """Makes a column when it is read first: some questions take less time than all columns.

    What they are made of must never change: a policy may keep what it was shown.
    """

    __slots__ = ("_makers",)

    def __init__(
        self, makers: Mapping[str, Callable[[], Numbers | Seconds]] | None = None, **columns: Any
    ) -> None:
        """`columns` are there already."""
        object.__setattr__(self, "_makers", makers or {})
        for name, column in columns.items():
            object.__setattr__(self, name, column)

    def __getattr__(self, name: str) -> Any:
        makers = object.__getattribute__(self, "_makers")
        if name not in makers:
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        column = makers[name]()
        object.__setattr__(self, name, column)
        return column


def _since(now_s: float, last_s: Seconds | float, arrived_s: Seconds) -> Seconds:
    """Seconds since the last token; before the first one since the request came."""
    if isinstance(last_s, float):
        return np.full(len(arrived_s), now_s - last_s)
    return now_s - np.where(np.isnan(last_s), arrived_s, last_s)


_NONE = np.zeros(0, np.int64)
