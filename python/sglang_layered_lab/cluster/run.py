"""The clock of a simulation: a queue of arrivals and of steps' ends, in order. Same seed, same result."""

import heapq
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from sglang_layered.core.capability import Capability, capabilities_of
from sglang_layered.core.policy import find_policy
from sglang_layered_lab.bench.spec_seeds import Stream, generator
from sglang_layered_lab.cluster.jobs import Job, jobs_of
from sglang_layered_lab.cluster.replica import Replica, Tally
from sglang_layered_lab.cluster.routers import ROUTERS, Router, Sent
from sglang_layered_lab.cluster.spec import CellSpec
from sglang_layered_lab.cluster.steps import Steps

ARRIVAL, STEP_END, WAKE = range(3)
ROUTER = -1  # as the index of who wakes
ROUTER_DICE = 2_000  # among the indices of a stream of random numbers


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left: requests with their tokens' times, what each replica counted, when the last ended."""

    jobs: Sequence[Job]
    tallies: Sequence[Tally]
    end_s: float


class Cluster:
    """Replicas behind a router."""

    def __init__(self, cell: CellSpec, steps: Steps, seed: int, repetition: int) -> None:
        self.replicas = made_replicas(cell, steps)
        dice = generator(seed, Stream.ARRIVALS, repetition, ROUTER_DICE)
        self.router: Router = ROUTERS[cell.cluster.router](self.replicas, dice)
        self._events: list[tuple[float, int, int, int]] = []  # time, order of making, kind, index
        self._order = count()
        self._now_s = 0.0

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Serve all of them; their times are written into them."""
        for index, job in enumerate(jobs):
            self._put(job.arrived_s, ARRIVAL, index)
        while self._events:
            self._now_s, _, kind, index = heapq.heappop(self._events)
            if kind == ARRIVAL:
                self._send(self.router.arrives(jobs[index], self._now_s))
            elif kind == STEP_END:
                self.replicas[index].end_step(self._now_s)
                self._send(self.router.asks(index, self._now_s))
                self._go_on(index)
            elif index == ROUTER:
                self._send(self.router.asks(ROUTER, self._now_s))
            elif not self.replicas[index].is_busy:
                self._go_on(index)
        return Outcome(jobs, [each.tally for each in self.replicas], self._now_s)

    def _send(self, sent: Sent) -> None:
        for job, index in sent:
            self.replicas[index].waiting.append(job)
        for index in dict.fromkeys(index for _, index in sent):
            if not self.replicas[index].is_busy:
                self._put(self._now_s, WAKE, index)  # after all that comes at the same moment
        if self.router.wake_s is not None:
            self._put(self.router.wake_s, WAKE, ROUTER)

    def _go_on(self, index: int) -> None:
        replica = self.replicas[index]
        ends_s = replica.begin_step(self._now_s)
        if ends_s is not None:
            self._put(ends_s, STEP_END, index)
        elif replica.wake_s is not None:
            self._put(replica.wake_s, WAKE, index)

    def _put(self, time_s: float, kind: int, index: int) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), kind, index))


def made_replicas(cell: CellSpec, steps: Steps) -> list[Replica]:
    """Replicas with a policy each, which knows what steps take.

    Raises:
        ConfigError: the policy is unknown.
    """
    asked = cell.replica
    policy = find_policy(asked.policy, group_tokens=asked.group_tokens, num_groups=asked.num_groups)
    can, limit_s = capabilities_of(policy), None
    if Capability.KEEPS_TBT_LIMIT in can and asked.keeps_tbt and cell.slo.tbt_ms is not None:
        limit_s = cell.slo.tbt_ms / 1e3
        policy.keep_tbt_limit(limit_s)  # type: ignore[attr-defined]
    ready = steps.taught(policy)
    return [Replica(steps, deepcopy(ready), asked, limit_s) for _ in range(cell.cluster.replicas)]


def simulated(cell: CellSpec, steps: Steps, folder: Path, seed: int, repetition: int) -> Outcome:
    """One round of one cell.

    Raises:
        SpecError: the load cannot be drawn.
        ConfigError: the policy is unknown.
    """
    return Cluster(cell, steps, seed, repetition).run(jobs_of(cell, folder, seed, repetition))
