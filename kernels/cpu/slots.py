"""Reads a request's keys and values from the slots of a KV pool, copying as little as can be.

A prompt's slots mostly lie in one run, and a run is read where it lies. Slots that lie about, as those of
tokens decoded beside other requests', are gathered, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

MIN_RUN = 64  # shorter runs are gathered with what lies about
PIECE_BYTES = 2 << 20  # of keys that are copied at a time: they are attended to while they are in the cache
MIN_PIECE = 256  # keys
ROWS_A_PIECE = 4  # keys a row of the query: every piece costs a pass over the rows' outputs

Slots = slice | torch.Tensor


def in_runs(slots: torch.Tensor) -> list[Slots]:
    """Slots [tokens] as ranges, where MIN_RUN or more lie one behind the other; all others in one tensor."""
    if not len(slots):
        return []
    starts = torch.cat([slots.new_zeros(1), (slots.diff() != 1).nonzero().flatten() + 1])
    lengths = torch.diff(starts, append=starts.new_tensor([len(slots)]))
    is_long = lengths >= MIN_RUN
    firsts = slots[starts[is_long]].tolist()
    found: list[Slots] = [
        slice(first, first + length) for first, length in zip(firsts, lengths[is_long].tolist(), strict=True)
    ]
    others = slots[~is_long.repeat_interleave(lengths)]
    return [*found, others] if len(others) else found


def as_run(slots: torch.Tensor) -> Slots:
    """Slots [tokens] in their order: a range, or as they are."""
    if len(slots) and bool((slots.diff() == 1).all()):
        return slice(int(slots[0]), int(slots[0]) + len(slots))
    return slots


class Reader:
    """Reads pools in the dtype that attention computes in. What it gave is overwritten by the next read."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._scratch: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def pieces(
        self, keys: torch.Tensor, values: torch.Tensor, runs: Iterable[Slots], num_rows: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values at these runs, for so many rows of a query.

        Args:
            keys: [slots, kv heads, key size].
            values: [slots, kv heads, value size].
            runs: As `in_runs` gives.
            num_rows: Rows that attend to them.
        """
        key_bytes = keys[0].numel() * self.dtype.itemsize
        most = max(PIECE_BYTES // key_bytes, ROWS_A_PIECE * num_rows, MIN_PIECE)
        for run in runs:
            if isinstance(run, slice) and keys.dtype == self.dtype:
                yield self.read(keys, values, run)
                continue
            start, end = (run.start, run.stop) if isinstance(run, slice) else (0, len(run))
            for at in range(start, end, most):
                part = slice(at, min(at + most, end))
                yield self.read(keys, values, part if isinstance(run, slice) else run[part])

    def read(
        self, keys: torch.Tensor, values: torch.Tensor, slots: Slots
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [tokens, kv heads, size] at these slots, in their order."""
        read = self._read("keys", keys, slots)
        if values.data_ptr() == keys.data_ptr():  # latent attention: a value is the first part of its key
            return read, read[..., : values.shape[-1]]
        return read, self._read("values", values, slots)

    def _read(self, name: str, pool: torch.Tensor, slots: Slots) -> torch.Tensor:
        if isinstance(slots, slice):
            found = pool[slots]
        else:
            found = self._room(name, pool, len(slots), pool.dtype)
            torch.index_select(pool, 0, slots, out=found)
        if found.dtype == self.dtype:
            return found
        return self._room(f"{name}, converted", found, len(found), self.dtype).copy_(found)

    def _room(self, name: str, like: torch.Tensor, num_tokens: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory for tokens [num_tokens, kv heads, size]: kept, since new pages cost more than the copy."""
        shape = (num_tokens, *like.shape[1:])
        size = torch.Size(shape).numel()
        room = self._scratch.get((name, dtype))
        if room is None or len(room) < size:
            room = self._scratch[name, dtype] = torch.empty(size, dtype=dtype)
        return room[:size].view(shape)
