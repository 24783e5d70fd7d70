"""Who sends a request to which replica, and whether at once. They see loads, never clocks of their own."""

from collections import deque
from collections.abc import Sequence
from itertools import count

import numpy as np

from sglang_layered_lab.cluster.jobs import Job
from sglang_layered_lab.cluster.replica import Replica
from sglang_layered_lab.cluster.spec import RouterName

Sent = list[tuple[Job, int]]


class Router:
    """Sends every request at once, to the replicas in turn."""

    def __init__(self, replicas: Sequence[Replica], dice: np.random.Generator) -> None:
        self.replicas, self.dice = replicas, dice
        self.wake_s: float | None = None  # when a router that holds requests wants to be asked again
        self._turns = count()

    def arrives(self, job: Job, now_s: float) -> Sent:
        """A request comes: requests to send now, each with a replica's index."""
        return [(job, self.choose())]

    def choose(self) -> int:
        """The replica of the next request."""
        return next(self._turns) % len(self.replicas)

    def asks(self, index: int, now_s: float) -> Sent:
        """A replica has ended a step, or the router has woken (-1)."""
        return []


class LeastLoaded(Router):
    """To the replica with the fewest tokens to compute."""

    def choose(self) -> int:
        """Of equal ones the first."""
        return min(range(len(self.replicas)), key=lambda index: self.replicas[index].work_tokens)


class TwoChoices(Router):
    """To the less loaded of two that are drawn, which takes a look at two replicas and not at all."""

    def choose(self) -> int:
        """SGLang's router has the same by the name of power_of_two."""
        drawn: list[int] = self.dice.integers(len(self.replicas), size=2).tolist()
        return min(drawn, key=lambda index: self.replicas[index].work_tokens)


class Staggered(Router):
    """Keeps requests until a replica has no prompt, and gives it a cohort of them (arXiv 2512.16134).

    How long it waits for the cohort to fill is the replicas' policy to say, if it holds.
    """

    def __init__(self, replicas: Sequence[Replica], dice: np.random.Generator) -> None:
        super().__init__(replicas, dice)
        self.kept: deque[Job] = deque()
        self._free = dict.fromkeys(range(len(replicas)))  # without prompts, in the order of their becoming so

    def arrives(self, job: Job, now_s: float) -> Sent:
        """Keep it, and send what may go."""
        self.kept.append(job)
        return self._released(now_s)

    def asks(self, index: int, now_s: float) -> Sent:
        """The replica may have become free."""
        if index >= 0 and not self.replicas[index].has_prompts:
            self._free[index] = None
        return self._released(now_s) if self.kept else []

    def _released(self, now_s: float) -> Sent:
        self.wake_s, sent = None, []
        while self.kept and self._free:
            held_s = self.replicas[0].asked.hold(
                self.kept, self.replicas[next(iter(self._free))].decoding, now_s
            )
            if held_s > 0:
                self.wake_s = now_s + held_s
                break
            index = min(self._free, key=lambda each: len(self.replicas[each].decoding))
            del self._free[index]
            left = self.replicas[index].spec.cohort_tokens
            share = -(-len(self.kept) // (len(self._free) + 1))  # those that are free too get as many
            while self.kept and left > 0 and share > 0:
                left, share = left - self.kept[0].to_compute, share - 1
                sent.append((self.kept.popleft(), index))
        return sent


ROUTERS: dict[RouterName, type[Router]] = {
    "round-robin": Router,
    "least-loaded": LeastLoaded,
    "two-choices": TwoChoices,
    "staggered": Staggered,
}
