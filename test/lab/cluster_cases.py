"""What tests of the simulator share: a machine whose step times are known, and requests for it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from auto_cases import LAYERS, SIZES, START, linear
from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.core.pacing import ModelSizes, StepLoad
from sglang_layered.core.policy import GroupPolicy
from sglang_layered.core.questions import SloClass
from sglang_layered_lab.cluster.jobs import Job
from sglang_layered_lab.cluster.run import Cluster, Outcome
from sglang_layered_lab.cluster.spec import (
    CellSpec,
    ClusterSpec,
    ReplicaSpec,
    simulation_from,
)

BASE: dict[str, Any] = {
    "simulation": {"name": "test", "seed": 3},
    "steps": {"device": "h200"},
    "load": {"arrivals": "poisson", "rate_per_s": 20.0, "num_requests": 40},
    "workload": {
        "lengths": {
            "prompt": {
                "distribution": "lognormal",
                "p50_tokens": 900.0,
                "p90_tokens": 4000.0,
                "max_tokens": 20000,
            },
            "output": {"distribution": "uniform", "min_tokens": 1, "max_tokens": 40},
        }
    },
    "slo": {"ttft_ms": 400.0, "tbt_ms": 30.0},
}


@dataclass
class KnownSteps:
    """The linear machine; every step's load is kept."""

    sizes: ModelSizes = SIZES
    between_s: float = 0.0003
    delay_steps: int = 1
    idle_rows: int = 0
    is_apart: bool = False
    loads: list[StepLoad] = field(default_factory=list)

    def step_s(self, load: StepLoad) -> float:
        self.loads.append(load)
        return linear(load)

    def taught(self, policy: GroupPolicy) -> GroupPolicy:
        if isinstance(policy, AutoPolicy):
            policy.begin(SIZES, LAYERS, START)
        return policy


def cell_of(cluster: ClusterSpec | None = None, **replica: Any) -> CellSpec:
    cell = simulation_from(BASE).cells[0].spec
    return replace(cell, cluster=cluster or ClusterSpec(), replica=ReplicaSpec(**replica))


def served(
    jobs: Sequence[Job], cell: CellSpec, policy: GroupPolicy | None = None, steps: KnownSteps | None = None
) -> Outcome:
    cluster = Cluster(cell, steps or KnownSteps(), seed=1, repetition=0)
    if policy is not None:
        for each in cluster.replicas:
            limit_s = policy.tbt_limit_s if isinstance(policy, AutoPolicy) else None
            each.__init__(each.steps, deepcopy(policy), cell.replica, limit_s)  # type: ignore[misc]
    return cluster.run(jobs)


def jobs_at(rows: Sequence[tuple[float, int, int]], slo: SloClass | None = None) -> list[Job]:
    """When they come, tokens of prompt and output."""
    return [Job(index, "all", *row, slo or SloClass(0.4, 0.03)) for index, row in enumerate(rows)]


def drawn(seed: int, number: int = 40, rate_per_s: float = 8.0) -> list[tuple[float, int, int]]:
    dice, now_s, rows = random.Random(seed), 0.0, []
    for _ in range(number):
        now_s += dice.expovariate(rate_per_s)
        rows.append((now_s, dice.choice((50, 300, 1500, 6000)), dice.randint(1, 60)))
    return rows
