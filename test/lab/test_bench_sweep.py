"""Sweeps: cells, their order, turns that are missing, a real run of two arms on a server without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from bench_checks.client_honesty import fake_server

from sglang_layered.errors import BenchError
from sglang_layered.metrics.slo import SloLimits
from sglang_layered_lab.bench import sweep as sweeps
from sglang_layered_lab.bench.metrics import Window
from sglang_layered_lab.bench.record import Repetition
from sglang_layered_lab.bench.scalars import SCALARS, scalars_of
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.bench.sweep import Turn, order, pool_for
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.bench.sweep_spec import SweepSpec, read_sweep, sweep_from
from sglang_layered_lab.bench.trace import Arrival, RequestTrace


def values(**more: Any) -> dict[str, Any]:
    return {
        "sweep": {"name": "small", "rounds": 3, "timeout_s": 60},
        "server": {"url": "http://127.0.0.1:1"},
        "load": {"arrivals": "closed", "num_clients": 1, "num_requests": 2},
        "workload": {
            "vocab": [3, 1000],
            "lengths": {
                "prompt": {"distribution": "fixed", "tokens": 8},
                "output": {"distribution": "fixed", "tokens": 3},
            },
        },
        "arms": [
            {"name": "first", "mode": "whole"},
            {"name": "second", "mode": "layered", "label": "2 groups", "changes": {"load.num_requests": 4}},
        ],
        "grid": {"workload.lengths.prompt.tokens": [8, 16], "load.num_clients": [1, 2]},
    } | more


def sweep_of(**more: Any) -> SweepSpec:
    return sweep_from(values(**more), Path("."))


def run_sweep(spec: SweepSpec, folder: Path, **more: Any) -> SweepResult:
    with pool_for([spec], folder) as pool:
        return sweeps.run_sweep(spec, folder, pool, **more)


def test_cells_are_arms_times_points_and_whole_specs() -> None:
    spec = sweep_of()
    assert len(spec.cells) == 2 * 2 * 2
    seen = {
        (cell.arm.name, cell.spec.workload.lengths.prompt.tokens, cell.spec.load.num_clients)  # type: ignore[union-attr]
        for cell in spec.cells
    }
    assert seen == {
        (arm, tokens, clients) for arm in ("first", "second") for tokens in (8, 16) for clients in (1, 2)
    }
    assert {cell.spec.load.num_requests for cell in spec.cells if cell.arm.name == "second"} == {4}
    assert len({cell.file_name for cell in spec.cells}) == len(spec.cells)
    assert {cell.spec.run.repetitions for cell in spec.cells} == {3}


def test_flags_of_an_arm_are_added_to_those_of_all() -> None:
    server = {"model": {"arch": "qwen3_moe"}, "flags": ["--dtype", "float32"]}
    arms = [{"name": "a", "mode": "mixed", "flags": ["--enable-mixed-chunk"]}, {"name": "b", "mode": "whole"}]
    workload = {"lengths": values()["workload"]["lengths"]}
    spec = sweep_of(server=server, arms=arms, workload=workload, grid={})
    flags = {cell.arm.name: cell.spec.server.flags for cell in spec.cells}
    assert flags == {"a": ("--dtype", "float32", "--enable-mixed-chunk"), "b": ("--dtype", "float32")}


def test_every_round_has_every_cell_once_and_rounds_differ_in_the_order_of_arms() -> None:
    arms = [{"name": f"arm{index}", "mode": "whole"} for index in range(5)]
    spec = sweep_of(arms=arms)
    orders = [[cell.file_name for cell in order(spec, index)] for index in range(4)]
    for each in orders:
        assert Counter(each) == Counter(cell.file_name for cell in spec.cells)
        points = [name.partition("@")[2] for name in each]
        assert all(len(set(points[start : start + 5])) == 1 for start in range(0, 20, 5))
    assert len({tuple(each) for each in orders}) == 4
    assert orders == [[cell.file_name for cell in order(sweep_of(arms=arms), index)] for index in range(4)]


def test_servers_that_do_not_fit_at_once_start_once_a_round() -> None:
    arms = [{"name": f"arm{index}", "mode": "whole", "flags": [f"--flag{index}"]} for index in range(4)]
    settings = {"name": "small", "rounds": 2, "timeout_s": 60, "max_servers": 2}
    workload = {"lengths": values()["workload"]["lengths"]}
    spec = sweep_of(arms=arms, sweep=settings, server={"model": {"arch": "qwen3_moe"}}, workload=workload)
    names = [cell.arm.name for cell in order(spec, 0)]
    assert Counter(names) == Counter({f"arm{index}": 4 for index in range(4)})
    assert sum(first != second for first, second in pairwise(names)) == 3


def test_arms_that_share_a_server_have_their_turns_one_after_the_other() -> None:
    arms = [
        {"name": f"arm{index}", "mode": "x", "flags": [f"--flag{index % 3}"]}
        | {"changes": {"server.settings": {"layered_num_groups": index}}}
        for index in range(9)
    ]
    settings = {"name": "small", "rounds": 2, "timeout_s": 60, "max_servers": 1}
    workload = {"lengths": values()["workload"]["lengths"]}
    spec = sweep_of(arms=arms, sweep=settings, server={"model": {"arch": "qwen3_moe"}}, workload=workload)
    for index in range(2):
        flags = [cell.spec.server.flags for cell in order(spec, index)]
        assert Counter(flags) == Counter({(f"--flag{each}",): 3 * 4 for each in range(3)})
        assert sum(first != second for first, second in pairwise(flags)) == 2


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        ({"arms": []}, ("arms",)),
        ({"arms": [{"name": "a", "mode": "x"}, {"name": "a", "mode": "y"}]}, ("arms",)),
        ({"arms": [{"name": "a", "mode": "x", "colour": "red"}]}, ("arms", 0, "colour")),
        ({"grid": {"load.num_clients": 3}}, ("grid", "load.num_clients")),
        ({"grid": {"load.num_client": [3]}}, ("load", "num_client")),
        ({"grid": {"load.arrivals.kind": [3]}}, ("grid", "load.arrivals.kind")),
        ({"run": {"name": "x"}}, ("run",)),
        ({"sweep": {"name": "x", "rounds": 0}}, ("sweep", "rounds")),
        ({"sweep": {"name": "../x"}}, ("sweep", "name")),
    ],
)
def test_a_bad_sweep_names_its_key(changed: dict[str, Any], keys: tuple[Any, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        sweep_of(**changed)
    assert caught.value.keys == keys


def test_an_error_of_a_file_has_the_line(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text('[sweep]\nname = "a"\n\n[[arms]]\nname = "one"\nmode = "whole"\nflag = []\n')
    with pytest.raises(
        BenchError, match=r"sweep\.toml:7: arms\[0\]\.flag: unknown key; did you mean 'flags'"
    ):
        read_sweep(path)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_server() as address:
        yield address


def test_a_sweep_goes_on_where_it_ended(url: str, tmp_path: Path) -> None:
    def spec(rounds: int) -> SweepSpec:
        settings = {"name": "small", "rounds": rounds, "timeout_s": 60}
        return sweep_of(server={"url": url}, sweep=settings, grid={"load.num_clients": [1, 2]})

    turns: list[Turn] = []
    found = run_sweep(spec(2), tmp_path / "s", tell=turns.append)
    assert len(turns) == 8
    assert [turn.round_index for turn in turns] == [0] * 4 + [1] * 4
    assert found.num_missing == 0 and found.arms == ["first", "second"]
    for cell in found.cells:
        assert [each.index for each in cell.record.repetitions] == [0, 1]
        assert len(cell.record.repetitions[0].traces) == (4 if cell.arm == "second" else 2)
        assert (cell.rounds.ttft_mean > 0).all()
    one = found.of_arm("second")[0].record_path
    before = one.read_bytes()
    one.unlink()
    turns.clear()
    again = run_sweep(spec(2), tmp_path / "s", tell=turns.append)
    assert {turn.cell.file_name for turn in turns} == {one.name} and len(turns) == 2
    assert again.num_missing == 0 and one.read_bytes() != before
    with pytest.raises(BenchError, match="holds another sweep"):
        run_sweep(replace(spec(2), grid={}), tmp_path / "s")
    run_sweep(spec(1), tmp_path / "s", restart=True)
    assert [len(cell.record.repetitions) for cell in SweepResult.read(tmp_path / "s").cells] == [1] * 4


def test_a_sweep_ends_within_its_budget_and_says_how_to_go_on(url: str, tmp_path: Path) -> None:
    spec = values(server={"url": url}, sweep={"name": "long"})
    spec["load"] |= {"num_requests": 10**6}
    path = tmp_path / "long.toml"
    path.write_text(tomlkit.dumps(spec))
    command = [sys.executable, "-m", "sglang_layered", "bench", "sweep", str(path), "--out", str(tmp_path)]
    done = subprocess.run([*command, "--budget-s", "2"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "The same command goes on" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "long" / "sweep.json").exists()


def test_a_sweep_takes_more_rounds_and_not_fewer(url: str, tmp_path: Path) -> None:
    def spec(rounds: int) -> SweepSpec:
        settings = {"name": "small", "rounds": rounds, "timeout_s": 60}
        return sweep_of(server={"url": url}, sweep=settings, grid={"load.num_clients": [1]})

    first = [cell.record.repetitions[0].traces for cell in run_sweep(spec(1), tmp_path).cells]
    turns: list[Turn] = []
    found = run_sweep(spec(3), tmp_path, tell=turns.append)
    assert [turn.round_index for turn in turns] == [1, 1, 2, 2]
    assert [cell.record.repetitions[0].traces for cell in found.cells] == first
    assert {cell.record.spec["run"]["repetitions"] for cell in found.cells} == {3}
    with pytest.raises(BenchError, match="sweep of 3 rounds; give rounds = 3 or more"):
        run_sweep(spec(2), tmp_path)


def test_arms_of_a_round_have_the_same_prompts(url: str, tmp_path: Path) -> None:
    arms = [{"name": name, "mode": "whole"} for name in ("a", "b")]
    lengths = {
        "prompt": {"distribution": "uniform", "min_tokens": 2, "max_tokens": 90},
        "output": {"distribution": "fixed", "tokens": 2},
    }
    spec = sweep_of(
        server={"url": url},
        arms=arms,
        grid={},
        workload={"vocab": [3, 999], "lengths": lengths},
        load={"arrivals": "closed", "num_clients": 1, "num_requests": 5},
    )
    found = run_sweep(spec, tmp_path / "s")
    sizes = [
        [[trace.prompt_tokens for trace in each.traces] for each in cell.record.repetitions]
        for cell in found.cells
    ]
    assert sizes[0] == sizes[1]
    assert sizes[0][0] != sizes[0][1]


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no sweep"):
        SweepResult.read(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1} | sweep_of().to_json()))
    with pytest.raises(BenchError, match="no cell of the sweep was run"):
        SweepResult.read(tmp_path)


def test_scalars_have_titles_of_their_own() -> None:
    assert len({scalar.title for scalar in SCALARS.values()}) == len(SCALARS)


def test_a_whole_run_ends_with_its_last_token_and_not_with_its_last_sending() -> None:
    """Two waves of two, in step: in the window of the first wave there are no tokens of the second."""
    traces = [
        RequestTrace(f"r{index}", sent, sent, 10, 4, tuple(Arrival(sent + 0.5 * n, n) for n in range(1, 5)))
        for index, sent in enumerate((1.0, 1.0, 3.0, 3.0))
    ]
    run = Repetition(0, tuple(traces), Window(0.0, 3.0), client={}, times={}, usage={})
    seen = scalars_of(run, run.metrics(SloLimits()))
    assert (seen["whole_rate"], seen["output_rate"]) == (pytest.approx(16 / 4), pytest.approx(6 / 3))
