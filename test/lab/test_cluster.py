"""Many replicas in simulated time: one is the replay's server, none loses a request, all is bounded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from auto_cases import LAYERS, NUM_LAYERS, SIZES, START, linear
from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.auto.step_times import StepTimes
from sglang_layered.cli.main import cli
from sglang_layered.core import bounds
from sglang_layered.core.capability import Capability
from sglang_layered.core.pacing import ModelSizes, StepLoad
from sglang_layered.core.policy import FixedCountPolicy, GroupPolicy, TokenTargetPolicy
from sglang_layered.core.questions import SloClass, Snapshot
from sglang_layered.errors import ConfigError
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.cluster import run as cluster_run
from sglang_layered_lab.cluster.figures import figures_of
from sglang_layered_lab.cluster.jobs import Job
from sglang_layered_lab.cluster.replica import Tally
from sglang_layered_lab.cluster.report import capacities, record_of, simulate, table_of
from sglang_layered_lab.cluster.routers import ROUTERS
from sglang_layered_lab.cluster.run import Cluster, Outcome
from sglang_layered_lab.cluster.spec import (
    CellSpec,
    ClusterSpec,
    ReplicaSpec,
    read_simulation,
    simulation_from,
)
from sglang_layered_lab.traces.replay import Replay, Request
from sglang_layered_lab.traces.run_model import RunModel

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted((ROOT / "scripts/cluster").glob("*.toml"))
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


class KnownModel(RunModel):
    """For the replay: the same machine."""

    def step_s(self, load: StepLoad) -> float:
        return linear(load)


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize(
    "policy",
    [FixedCountPolicy(4), TokenTargetPolicy(512), AutoPolicy(0.03), FixedCountPolicy(1)],
    ids=["fixed", "token-target", "auto", "whole"],
)
def test_one_replica_is_the_server_of_the_replay(policy: GroupPolicy, delay: int) -> None:
    rows = drawn(seed=5)
    steps, cell = KnownSteps(delay_steps=delay), cell_of(cohort_tokens=4096)
    policies = [deepcopy(policy) for _ in range(2)]
    for each in policies:
        if isinstance(each, AutoPolicy):
            each.begin(SIZES, LAYERS, START)
    jobs = served(jobs_at(rows), cell, policies[0], steps).jobs
    model = KnownModel(SIZES, StepTimes(), steps.between_s, delay)
    limit_s = policy.tbt_limit_s if isinstance(policy, AutoPolicy) else None
    asked = [Request(str(index), row[0], row[1], 0, row[2]) for index, row in enumerate(rows)]
    truth = Replay(model, policies[1], 4096, limit_s).run(asked)
    for job in jobs:
        tokens_s = truth[str(job.index)].tokens_s
        assert (job.first_s, job.last_s) == pytest.approx((tokens_s[0], tokens_s[-1]), abs=1e-9)
        assert job.num_heard == len(tokens_s) == job.output_tokens


@dataclass
class AnyAnswer:
    """Answers what may be answered, by lot."""

    can: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.ORDERS_QUEUE,
            Capability.HOLDS_PROMPTS,
            Capability.PREEMPTS_COHORTS,
            Capability.CHOOSES_DECODES,
        }
    )
    dice: random.Random

    def plan(self, view: Any) -> Any:
        return TokenTargetPolicy(self.dice.choice((64, 512, 4096))).plan(view)

    def some(self, number: int) -> list[int]:
        return self.dice.sample(range(number), self.dice.randint(0, number))

    def order(self, view: Snapshot) -> list[int]:
        return self.some(len(view.waiting))

    def hold(self, view: Snapshot) -> float:
        return self.dice.choice((0.0, 0.01, 1e9))

    def preempt(self, view: Snapshot) -> list[int] | None:
        assert view.flying and view.waiting
        return self.dice.choice((None, self.some(len(view.waiting))))

    def decode_rows(self, view: Snapshot) -> list[int] | None:
        assert view.flying and len(view.running)
        return self.some(len(view.running))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([*ROUTERS]), st.integers(1, 3), st.integers(0, 2))
def test_whatever_a_policy_answers_every_request_is_served_and_nothing_is_computed_twice(
    seed: int, router: Any, replicas: int, max_parked: int
) -> None:
    steps = KnownSteps()
    cell = cell_of(ClusterSpec(replicas, router), cohort_tokens=2048, max_parked=max_parked, max_running=16)
    rows = drawn(seed, 30, 20.0)
    outcome = served(jobs_at(rows), cell, AnyAnswer(random.Random(seed)), steps)
    assert all(job.num_heard == job.output_tokens and job.left == 0 for job in outcome.jobs)
    rows_by_layers = sum(load.prompt_rows * load.prompt_layers for load in steps.loads)
    assert rows_by_layers == pytest.approx(NUM_LAYERS * sum(row[1] for row in rows))
    assert sum(load.decode_rows for load in steps.loads) == sum(row[2] - 1 for row in rows)
    assert max(load.decode_rows for load in steps.loads) <= 16
    longest_s = max(map(linear, steps.loads)) + steps.between_s
    for job in outcome.jobs:
        assert job.worst_gap_s <= (bounds.MOST_SAT_OUT + 2) * longest_s + bounds.MOST_HELD_S


def test_with_the_overlap_scheduler_a_request_decodes_once_more_than_it_has_tokens() -> None:
    rows = [(0.0, 100, 5), (0.001, 100, 3), (0.5, 50, 1)]
    steps = KnownSteps(idle_rows=1)
    jobs = served(jobs_at(rows), cell_of(), None, steps).jobs
    assert [job.num_heard for job in jobs] == [5, 3, 1]
    assert sum(load.decode_rows for load in steps.loads) == 4 + 2 + 0 + 3


def test_a_long_prompt_goes_on_between_short_ones_that_never_end() -> None:
    short = [(0.5 + 0.004 * index, 40, 2) for index in range(400)]
    steps, cell = KnownSteps(), cell_of(max_parked=1, group_tokens=128)
    jobs = served(jobs_at([(0.0, 100, 200), (0.49, 6000, 3), *short]), cell, None, steps).jobs
    num_groups = min(NUM_LAYERS, 6000 // 128)
    assert jobs[1].first_s - 0.49 < 2 * (num_groups + 2) * 0.02


def test_overtaking_helps_the_short_ones() -> None:
    rows = [(0.0, 100, 200), (0.1, 6000, 3), *[(0.11 + 0.02 * index, 40, 2) for index in range(4)]]
    times = [served(jobs_at(rows), cell_of(max_parked=most, num_groups=8)).jobs[2].first_s for most in (0, 1)]
    assert times[1] < times[0] / 1.5


def test_the_least_loaded_gets_the_next_request() -> None:
    rows = [(0.0, 6000, 2), (0.001, 6000, 2), (0.002, 100, 2), (0.003, 6000, 2), (0.004, 100, 2)]
    by_load = served(jobs_at(rows), cell_of(ClusterSpec(3, "least-loaded"))).jobs
    in_turn = served(jobs_at(rows), cell_of(ClusterSpec(3, "round-robin"))).jobs
    assert by_load[4].first_s < in_turn[4].first_s


def test_a_router_that_keeps_requests_gives_them_to_who_has_no_prompt() -> None:
    rows = [(0.0, 8000, 2), *[(0.001 + 0.0001 * index, 200, 2) for index in range(12)]]
    kept = served(jobs_at(rows), cell_of(ClusterSpec(2, "staggered"))).jobs
    assert max(job.first_s for job in kept[1:]) < kept[0].first_s


def test_the_same_seed_gives_the_same_record_and_another_one_another() -> None:
    made = [
        record_of(each, simulate(each))["cells"]
        for each in (
            simulation_from({**BASE, "simulation": {"name": "a", "seed": seed}}) for seed in (1, 1, 2)
        )
    ]
    assert made[0] == made[1] != made[2]


def test_every_arm_gets_the_same_requests_and_classes_have_limits_of_their_own() -> None:
    classes = [
        {"name": "chat", "share": 0.75, "slo": {"ttft_ms": 100.0}, "priority": 1},
        {"name": "rest", "share": 0.25, "lengths": {**BASE["workload"]["lengths"]}},
    ]
    arms = [{"name": "a"}, {"name": "b", "changes": {"replica.policy": "auto"}}]
    cells = simulation_from({**BASE, "classes": classes, "arms": arms}).cells
    first, second = (cluster_run.jobs_of(cell.spec, ROOT, 1, 0) for cell in cells)
    assert first == second
    assert {(job.kind, job.slo, job.priority) for job in first} == {
        ("chat", SloClass(0.1, 0.03), 1), ("rest", SloClass(0.4, 0.03), 0),
    }  # fmt: skip


def test_figures_are_those_of_the_tokens_times() -> None:
    job = Job(0, "all", 1.0, 10, 3, SloClass(0.5, 0.1))
    late = Job(1, "all", 1.0, 10, 2, SloClass(0.5, inf))
    for time_s in (1.2, 1.45, 1.5):
        job.hear(time_s)
    for time_s in (1.6, 2.0):
        late.hear(time_s)
    found = figures_of([Outcome([job, late], [Tally()], 2.0)]).all
    assert found.ttft.mean == pytest.approx(0.4) and found.tpot and found.tpot.max == pytest.approx(0.4)
    assert found.worst_gap and found.worst_gap.max == pytest.approx(0.4)
    assert (found.attained, found.in_time, found.steady, found.on_line) == (0.0, 0.5, 0.0, 1.0)


def test_the_capacity_of_each_arm_is_told_of_a_grid_of_rates() -> None:
    found = simulate(simulation_from({**BASE, "grid": {"load.rate_per_s": [2.0, 400.0]}}))
    rates = capacities(found)["simulated"]
    assert 2 < float(rates["attained"]) < 400 and 2 < float(rates["on_line"]) < 400


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda it: it["load"].update(arrivals="closed", num_clients=2, rate_per_s=None), "no closed load"),
        (lambda it: it["steps"].update(trace="a"), "either trace or device"),
        (lambda it: it["steps"].update(device="tpu"), "give one of"),
        (lambda it: it.update(classes=[{"name": "a", "share": 0.5}]), "make it 1"),
        (lambda it: it.update(arms=[{"name": "a", "changes": {"replica.polcy": "auto"}}]), "polcy"),
        (lambda it: it.update(cluster={"router": "nearest"}), "router"),
    ],
)
def test_what_is_wrong_with_a_spec_is_told(change: Change, words: str) -> None:
    values = deepcopy(BASE)
    change(values)
    with pytest.raises(SpecError, match=words):
        simulation_from(values)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_shipped_spec_runs(path: Path) -> None:
    simulation = read_simulation(path)
    firsts = {cell.arm: cell for cell in reversed(simulation.cells)}
    few = [
        replace(
            cell,
            spec=replace(
                cell.spec,
                load=replace(cell.spec.load, num_requests=6, duration_s=None, warmup_s=0.0, cooldown_s=0.0),
            ),
        )
        for cell in firsts.values()
    ]
    quick = replace(simulation, settings=replace(simulation.settings, rounds=1), cells=tuple(few))
    found = simulate(quick)
    assert table_of(quick, found).row_count >= len(firsts)
    assert all(each.figures.all.num_unfinished == 0 for each in found)


def test_the_command_prints_a_table_and_writes_a_record(tmp_path: Path) -> None:
    spec, out = tmp_path / "a.toml", tmp_path / "out/a.json"
    spec.write_text(
        '[simulation]\nname = "a"\n[steps]\ndevice = "h200"\n[load]\narrivals = "constant"\n'
        "rate_per_s = 4.0\n"
        'num_requests = 5\n[workload.lengths.prompt]\ndistribution = "fixed"\ntokens = 500\n'
        '[workload.lengths.output]\ndistribution = "fixed"\ntokens = 4\n'
    )
    result = CliRunner().invoke(cli, ["simulate", str(spec), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "steps simulated" in result.output
    record = json.loads(out.read_text())
    assert record["cells"][0]["figures"]["kinds"][0]["num_requests"] == 5
    spec.write_text(spec.read_text() + '[replica]\npolicy = "none-such"\n')
    result = CliRunner().invoke(cli, ["simulate", str(spec)])
    assert isinstance(result.exception, ConfigError) and "unknown policy" in str(result.exception)
