"""What a replica asks its policy, and the bounds that a server holds the answers in."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, cast

import numpy as np

from sglang_layered.core import bounds
from sglang_layered.core.capability import Capability, capabilities_of
from sglang_layered.core.policy import GroupPolicy
from sglang_layered.core.questions import (
    NOBODY,
    Flying,
    Questions,
    Queue,
    Running,
    SloClass,
    Snapshot,
    Waiting,
)
from sglang_layered_lab.cluster.jobs import Job
from sglang_layered_lab.cluster.spec import ReplicaSpec

if TYPE_CHECKING:
    from sglang_layered_lab.cluster.replica import Flight

TICK_S = 1e-9  # what is shorter is no wait


class Asked:
    """A policy's answers about requests; what it is not asked goes by the server's own rules."""

    def __init__(self, policy: GroupPolicy, spec: ReplicaSpec, num_layers: int) -> None:
        can, asked = capabilities_of(policy), cast("Questions", policy)
        self.short_tokens = spec.short_tokens or spec.group_tokens
        self._order = asked.order if Capability.ORDERS_QUEUE in can else None
        self._hold = asked.hold if Capability.HOLDS_PROMPTS in can else None
        self._preempt = asked.preempt if Capability.PREEMPTS_COHORTS in can else None
        self._decode_rows = asked.decode_rows if Capability.CHOOSES_DECODES in can else None
        self._max_tokens, self._num_layers = spec.cohort_tokens, num_layers
        self._sorts_out = spec.max_parked > 0 and self._preempt is None  # short and long share no cohort
        self._held_since_s: float | None = None

    @property
    def preempts(self) -> bool:
        """True when the policy says who goes before a cohort."""
        return self._preempt is not None

    def order(self, waiting: Sequence[Job], running: Sequence[Job], now_s: float) -> list[Job]:
        """Prompts that may be admitted, in order; the next chunk of one goes first, whatever is said."""
        rest = [job for job in waiting if not job.done_tokens]
        chunks = [job for job in waiting if job.done_tokens]
        if self._order is not None and rest:
            view = self._snapshot(rest, running, (), now_s)
            chosen = [rest[index] for index in bounds.admitted_in(self._order(view), view.waiting)]
            if not chosen:
                pass_over(rest)
            return [*chunks, *chosen]
        if not self._sorts_out:
            return [*chunks, *rest]
        is_short = not chunks and self._is_short(rest[0])
        return [*chunks, *(job for job in rest if self._is_short(job) == is_short)]

    def hold(self, waiting: Sequence[Job], running: Sequence[Job], now_s: float) -> float:
        """Seconds to wait for a fuller cohort."""
        if self._hold is None or any(job.done_tokens for job in waiting):
            return 0.0
        since_s = self._held_since_s = now_s if self._held_since_s is None else self._held_since_s
        answer_s = self._hold(self._snapshot(waiting, running, (), now_s))
        held_s = bounds.held_for(answer_s, now_s - since_s)
        if held_s < TICK_S:
            self._held_since_s, held_s = None, 0.0
        return held_s

    def before(
        self, flights: "Sequence[Flight]", waiting: Sequence[Job], running: Sequence[Job], now_s: float
    ) -> list[Job]:
        """Prompts that go before the cohort in flight, whole."""
        if self._preempt is None:
            is_short = flights[-1].num_rows <= self.short_tokens
            return [] if is_short else self._short_ones(waiting)
        rest = [job for job in waiting if not job.done_tokens]
        if not rest:
            return []
        view = self._snapshot(rest, running, [self._flying(each, now_s) for each in flights], now_s)
        chosen = bounds.overtaking(self._preempt(view), view.waiting, self._max_tokens)
        return [rest[index] for index in chosen]

    def decoding(self, running: list[Job], flights: "Sequence[Flight]", now_s: float) -> list[Job]:
        """Who decodes in a step that computes prompts."""
        if self._decode_rows is None or not running:
            return running
        view = self._snapshot((), running, [self._flying(each, now_s) for each in flights], now_s)
        found = bounds.decoding(self._decode_rows(view), view.running)
        chosen = range(len(running)) if found is None else found
        for job in running:
            job.sat_out += 1
        for index in chosen:
            running[index].sat_out = 0
        return [running[index] for index in chosen]

    def _short_ones(self, waiting: Sequence[Job]) -> list[Job]:
        """The first short prompts that are together no longer than one may be."""
        chosen: list[Job] = []
        left = self.short_tokens
        for job in waiting:
            if self._is_short(job):
                left -= job.to_compute
                if chosen and left < 0:
                    break
                chosen.append(job)
        return chosen

    def _is_short(self, job: Job) -> bool:
        return job.to_compute <= self.short_tokens

    def _snapshot(
        self, waiting: Sequence[Job], running: Sequence[Job], flying: Sequence[Flying], now_s: float
    ) -> Snapshot:
        prompts = [
            Waiting(job.to_compute, 0, now_s - job.arrived_s, job.slo, job.priority, job.passed)
            for job in islice(waiting, bounds.MOST_LOOKED_AT)
        ]
        queue = Queue.of(prompts)
        return Snapshot(queue, running_view(running, now_s), flying, len(waiting), self._max_tokens)

    def _flying(self, flight: "Flight", now_s: float) -> Flying:
        jobs = [job for job, _ in flight.pieces]
        slo = SloClass(min(job.slo.ttft_s for job in jobs), min(job.slo.tbt_s for job in jobs))
        waited_s = now_s - min(job.arrived_s for job in jobs)
        priority = max(job.priority for job in jobs)
        where = (flight.num_rows, flight.done_layers, self._num_layers, waited_s)
        return Flying(*where, slo, priority, flight.times_overtaken)


def pass_over(waiting: Sequence[Job]) -> None:
    """Others were admitted, or nobody: those that the policy sees count it."""
    for job in islice(waiting, bounds.MOST_LOOKED_AT):
        job.passed += 1


def running_view(running: Sequence[Job], now_s: float) -> Running:
    """Columns of the requests that decode."""
    if not running:
        return NOBODY
    counts = np.array(
        [(job.context, job.output_tokens - job.left, job.priority, job.sat_out) for job in running]
    )
    times = np.array(
        [
            (job.arrived_s, job.last_s if job.num_heard else job.ready_s, job.slo.ttft_s, job.slo.tbt_s)
            for job in running
        ]
    )
    return Running(
        counts[:, 0], counts[:, 1], now_s - times[:, 0], now_s - times[:, 1], times[:, 2], times[:, 3],
        counts[:, 2], counts[:, 3],
    )  # fmt: skip
