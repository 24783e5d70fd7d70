"""A timeline of pipeline ticks from their costs: when each stage runs what, and how long it waits.

Tick k on stage p starts when the stage is done with tick k-1 and the stage before with tick k; the first
stage also needs the tokens of the same micro-batch's last turn, tick k-S of the last stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Timeline:
    """Ends of ticks in seconds: `ends[k][p]` of tick k on stage p."""

    costs: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]

    @property
    def makespan_s(self) -> float:
        """Until the last stage is done with the last tick."""
        return self.ends[-1][-1]

    @property
    def bubble(self) -> float:
        """Part of all stages' time in which they wait."""
        busy = sum(map(sum, self.costs))
        return 1 - busy / (self.makespan_s * len(self.ends[0]))

    def worst_gap_s(self, decoding: Sequence[int], num_micro_batches: int) -> float:
        """Longest time between two tokens of a micro-batch; `decoding` are the ticks that gave tokens."""
        gaps = [0.0]
        for micro_batch in range(num_micro_batches):
            times = [self.ends[tick][-1] for tick in decoding if tick % num_micro_batches == micro_batch]
            gaps += [later - earlier for earlier, later in pairwise(times)]
        return max(gaps)


def timeline(costs: Sequence[Sequence[float]]) -> Timeline:
    """Lay out ticks; `costs[k][p]` is what tick k takes on stage p. Micro-batches are as many as stages."""
    num_stages = len(costs[0])
    ends: list[list[float]] = []
    for tick, row in enumerate(costs):
        done: list[float] = []
        for stage, cost in enumerate(row):
            own = ends[tick - 1][stage] if tick else 0.0
            before = done[-1] if done else (ends[tick - num_stages][-1] if tick >= num_stages else 0.0)
            done.append(max(own, before) + cost)
        ends.append(done)
    return Timeline(tuple(map(tuple, costs)), tuple(map(tuple, ends)))


@dataclass(frozen=True)
class Costs:
    """Measured: a decode step, and a whole prompt (or chunk), of one stage of S."""

    decode_s: float
    prompt_s: float


def layered(costs: Costs, num_stages: int, num_groups: int, num_prompts: int) -> tuple[Timeline, list[int]]:
    """Prompts one behind the other, each `num_groups` ticks on each stage; every tick decodes."""
    num_ticks = num_groups * (num_prompts + num_stages - 1)
    group_s = costs.prompt_s / num_groups
    rows = []
    for tick in range(num_ticks):
        places = [tick // num_groups - stage for stage in range(num_stages)]
        rows.append([costs.decode_s + (group_s if 0 <= at < num_prompts else 0.0) for at in places])
    return timeline(rows), list(range(num_ticks))


def chunked(costs: Costs, num_stages: int, num_chunks: int, num_prompts: int) -> tuple[Timeline, list[int]]:
    """SGLang: a turn runs a chunk or decodes, chunks first; then every micro-batch decodes once more."""
    chunk_s = costs.prompt_s / num_chunks
    rows = [[costs.decode_s] * num_stages for _ in range(num_stages)]
    rows += [[chunk_s] * num_stages for _ in range(num_chunks * num_prompts)]
    first_after = len(rows)
    rows += [[costs.decode_s] * num_stages for _ in range(num_stages)]
    return timeline(rows), [*range(num_stages), *range(first_after, len(rows))]
