"""SGLang's request receiver, whose broadcast to the tensor-parallel ranks also carries rank 0's clock."""

from dataclasses import fields
from typing import Any

from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver

from sglang_layered.scheduler.rank_clock import RankClock


class ClockedReceiver(SchedulerRequestReceiver):
    """The last item of its broadcast is the clock's reading on rank 0.

    Upstream: srt/managers/scheduler_components/request_receiver.py, `_broadcast_reqs_across_ranks`.
    """

    __slots__ = ("clock",)
    clock: RankClock

    @classmethod
    def of(cls, receiver: SchedulerRequestReceiver, clock: RankClock) -> "ClockedReceiver":
        """The same receiver with a clock."""
        found = cls(**{item.name: getattr(receiver, item.name) for item in fields(receiver)})
        object.__setattr__(found, "clock", clock)  # SGLang's class is frozen, and its slots are its own
        return found

    def _broadcast_reqs_across_ranks(
        self, recv_reqs: list[Any] | None, *behind: list[Any] | None
    ) -> list[Any]:
        lists = [recv_reqs, *behind]  # newer releases send aborts of their own behind what they received
        mine = self.clock.publish()
        if recv_reqs is not None:
            lists[-1] = [*(lists[-1] or ()), mine]
        *reqs, self.clock.latest = super()._broadcast_reqs_across_ranks(*lists)
        return reqs
