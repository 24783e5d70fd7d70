"""Requests whose KV slots nothing may keep yet.

SGLang's pool shares a slot index over all layers, and a cohort's slots are allocated whole at admission. So
between admission and the last group a slot is filled in some layers only. Whatever keeps KV beyond a request
asks here first (`upstream/cache.py`); which layers are filled is the cohort's to say.
"""

from collections.abc import Iterable, Iterator, Sized

from sglang_layered.errors import InvariantError


class GroupKVLedger:
    """New KV slots of requests in flight, by request id; it holds their handles and never reads them."""

    def __init__(self) -> None:
        self._slots: dict[str, Sized] = {}

    def __iter__(self) -> Iterator[tuple[str, Sized]]:
        return iter(self._slots.items())

    def __len__(self) -> int:
        return len(self._slots)

    def may_be_kept(self, request_id: str) -> bool:
        """False while any of the request's slots is filled in some layers only."""
        return request_id not in self._slots

    def admit(self, request_id: str, slots: Sized) -> None:
        """These slots were allocated and are filled nowhere yet.

        Raises:
            InvariantError: the request is in flight already.
        """
        if request_id in self._slots:
            raise InvariantError(f"request {request_id} is admitted twice")
        self._slots[request_id] = slots

    def released(self, request_ids: Iterable[str]) -> None:
        """The slots of these have gone back to the pool."""
        for request_id in request_ids:
            self._slots.pop(request_id, None)

    def complete(self, request_ids: Iterable[str]) -> None:
        """Every layer of these is filled.

        Raises:
            InvariantError: one of them is not in flight.
        """
        for request_id in request_ids:
            if self._slots.pop(request_id, None) is None:
                raise InvariantError(f"request {request_id} is not in flight")
