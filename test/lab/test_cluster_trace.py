"""Simulated replicas take the very steps of two real ones, given their requests and what each step took."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from sglang_layered.core.pacing import ModelSizes, StepLoad
from sglang_layered.core.policy import GroupPolicy, TokenTargetPolicy
from sglang_layered.core.questions import SloClass
from sglang_layered_lab.cluster.jobs import Job
from sglang_layered_lab.cluster.replica import Replica
from sglang_layered_lab.cluster.spec import ReplicaSpec
from sglang_layered_lab.traces.replay import requests_of
from sglang_layered_lab.traces.trace import TracedStep, read_trace

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "results/cluster/2026-11-30-2cores-two-replicas"
GROUP_TOKENS = 64  # --layered-group-tokens of the run
PARTS = {0: (224, 224), 1: (281, 282)}  # steps that are the same, of all


@dataclass
class AsTraced:
    """Step number k takes what the trace's took, whatever is in it; loads are kept."""

    sizes: ModelSizes
    steps: list[TracedStep]
    between_s: float = 0.0
    delay_steps: int = 1
    idle_rows: int = 1
    is_apart: bool = False
    loads: list[StepLoad] = field(default_factory=list)

    def step_s(self, load: StepLoad) -> float:
        number = len(self.loads)
        self.loads.append(load)
        step = self.steps[min(number, len(self.steps) - 1)]
        later = self.steps[number + 1] if number + 1 < len(self.steps) else None
        ends_s = step.start_s + step.duration_s
        if later is None or (not later.load.decode_rows and min(later.arrived_s.values()) > ends_s):
            return step.duration_s  # then it had nothing to run
        return later.start_s - step.start_s

    def taught(self, policy: GroupPolicy) -> GroupPolicy:
        return policy


def serve(replica: Replica, steps: AsTraced, jobs: list[Job]) -> None:
    """As the cluster's clock, but that a replica with nothing to run begins when the real one did."""
    events: list[tuple[float, int, Job | None]] = [(job.arrived_s, job.index, job) for job in jobs]
    heapq.heapify(events)
    while events:
        now_s, _, job = heapq.heappop(events)
        if job is not None:
            replica.waiting.append(job)
            if not replica.is_busy:
                began_s = steps.steps[min(len(steps.loads), len(steps.steps) - 1)].start_s
                heapq.heappush(events, (max(now_s, began_s), len(jobs), None))
            continue
        if replica.is_busy:
            replica.end_step(now_s)
        ends_s = replica.begin_step(now_s)
        if ends_s is not None:
            heapq.heappush(events, (ends_s, len(jobs), None))


def content(load: StepLoad) -> tuple[Any, ...]:
    return load.decode_rows, tuple(load.prompt_lens), round(load.prompt_layers, 6)


@pytest.mark.parametrize("number", PARTS)
def test_a_replica_takes_the_steps_that_the_real_one_took(number: int) -> None:
    trace = read_trace(RECORD / f"trace-{number}.jsonl.gz")
    requests = [each for each in requests_of(trace.steps) if each.tokens_s]
    steps = AsTraced(trace.sizes, list(trace.steps))
    replica = Replica(steps, TokenTargetPolicy(GROUP_TOKENS), ReplicaSpec(group_tokens=GROUP_TOKENS), None)
    jobs = [
        Job(index, "all", each.arrived_s, each.prompt_tokens, each.output_tokens, SloClass())
        for index, each in enumerate(requests)
    ]
    serve(replica, steps, jobs)
    found, truth = (
        [content(load) for load in loads] for loads in (steps.loads, [s.load for s in trace.steps])
    )
    same = sum(one == other for one, other in zip(found, truth, strict=True))
    assert (same, len(truth)) == PARTS[number]
    assert mean(job.first_s - job.arrived_s for job in jobs) == pytest.approx(
        mean(each.ttft_s for each in requests), rel=0.001
    )
