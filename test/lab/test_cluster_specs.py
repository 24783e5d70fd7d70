"""Simulations by their specs: the same requests for every arm, figures, errors, the shipped ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster_cases import BASE
from sglang_layered.cli.main import cli
from sglang_layered.core.questions import SloClass
from sglang_layered.errors import ConfigError
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.cluster import run as cluster_run
from sglang_layered_lab.cluster.figures import figures_of
from sglang_layered_lab.cluster.jobs import Job
from sglang_layered_lab.cluster.replica import Tally
from sglang_layered_lab.cluster.report import capacities, record_of, simulate, table_of
from sglang_layered_lab.cluster.run import Outcome
from sglang_layered_lab.cluster.spec import (
    read_simulation,
    simulation_from,
)

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted((ROOT / "scripts/cluster").glob("*.toml"))


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
