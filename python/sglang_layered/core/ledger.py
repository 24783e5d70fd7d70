"""Which layers of which KV slots are filled.

SGLang's pool shares a slot index over all layers, and a cohort's slots are allocated whole at admission. So
between admission and the last group a slot is filled in some layers only. The ledger is what knows it: it
decides whether a request's slots may enter the prefix cache. It holds slot handles and never reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass

from sglang_layered.core.plan import LayerGroup
from sglang_layered.errors import InvariantError


@dataclass(frozen=True, slots=True)
class KVEntry:
    """One in-flight request: its new slots, filled in layers [0, filled_layers)."""

    request_id: str
    slots: Sized
    filled_layers: int


class GroupKVLedger:
    """KV slots of in-flight cohorts: admission, group by group, to complete or dropped."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self._entries: dict[str, KVEntry] = {}

    def __iter__(self) -> Iterator[KVEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_partial_slots(self) -> int:
        """Slots that are allocated and not filled in every layer."""
        return sum(len(entry.slots) for entry in self if entry.filled_layers < self.num_layers)

    def admit(self, request_id: str, slots: Sized) -> None:
        """Record the new slots of a request, filled nowhere yet."""
        if request_id in self._entries:
            raise InvariantError(f"request {request_id} is admitted twice")
        self._entries[request_id] = KVEntry(request_id, slots, 0)

    def group_done(self, request_ids: Iterable[str], group: LayerGroup) -> None:
        """Record that `group` was computed for these requests; groups must come in order."""
        for request_id in request_ids:
            entry = self._entry(request_id)
            if entry.filled_layers != group.start or group.end > self.num_layers:
                raise InvariantError(
                    f"request {request_id} is filled up to layer {entry.filled_layers} of {self.num_layers}"
                    f" and cannot run layers [{group.start}, {group.end})"
                )
            self._entries[request_id] = KVEntry(request_id, entry.slots, group.end)

    def may_enter_prefix_cache(self, request_id: str) -> bool:
        """False while any of the request's slots is filled in some layers only."""
        entry = self._entries.get(request_id)
        return entry is None or entry.filled_layers == self.num_layers

    def complete(self, request_ids: Iterable[str]) -> None:
        """Forget requests whose every layer is filled."""
        for request_id in request_ids:
            if not self.may_enter_prefix_cache(request_id):
                entry = self._entry(request_id)
                raise InvariantError(
                    f"request {request_id} is complete only up to layer {entry.filled_layers}"
                )
            del self._entries[request_id]

    def reset(self, request_ids: Iterable[str]) -> None:
        """Forget all but these requests, taken as filled in no layer: the way out of a broken invariant."""
        self._entries = {request_id: KVEntry(request_id, (), 0) for request_id in request_ids}

    def drop(self, request_ids: Iterable[str]) -> None:
        """Forget requests whose slots go back to the pool."""
        for request_id in request_ids:
            self._entry(request_id)
            del self._entries[request_id]

    def _entry(self, request_id: str) -> KVEntry:
        if request_id not in self._entries:
            raise InvariantError(f"request {request_id} is not in flight")
        return self._entries[request_id]
