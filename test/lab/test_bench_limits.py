"""Arms with a limit against the best that keep it, on made-up sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench_sweeps import ARMS, Made, write_sweep
from sglang_layered.cli.main import cli
from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.limits import limit_rows

AUTO = {
    "auto-300": Made("auto", "300 ms", 0.95, 0.24, flags=("--slo-tbt-ms", "300")),
    "auto-100": Made("auto", "100 ms", 1.4, 0.13, flags=("--slo-tbt-ms", "100")),
}


def test_the_best_rival_of_each_mode_keeps_the_limit(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", arms={**ARMS, **AUTO}, num_background=4, noise=0.005)
    loose, tight = limit_rows(sweep)
    assert (loose.own.arm, loose.limit_s) == ("auto-300", 0.3)
    assert loose.own.share == 1.0
    assert {rival.mode: rival.kept.arm for rival in loose.rivals} == {
        "mixed": "mixed-512",  # 1024 pauses 0.30 s, and the machine drifts
        "layered": "layered-4",
    }
    [layered] = [rival for rival in loose.rivals if rival.mode == "layered"]
    assert layered.over is not None and layered.over.value == pytest.approx(0.95, rel=0.02)
    assert layered.verdict == "yes"
    [mixed] = [rival for rival in loose.rivals if rival.mode == "mixed"]
    assert mixed.over is not None and mixed.over.value == pytest.approx(0.5, rel=0.02)
    assert tight.rivals == () and tight.own.share < 1


def test_a_lost_comparison_says_no(tmp_path: Path) -> None:
    arms = {**ARMS, "auto": Made("auto", "300 ms", 1.2, 0.24, flags=("--slo-tbt-ms", "300"))}
    [row] = limit_rows(write_sweep(tmp_path / "s", arms=arms, num_background=4, noise=0.005))
    assert {rival.mode: rival.verdict for rival in row.rivals} == {"mixed": "yes", "layered": "no"}


def test_without_streams_the_requests_own_gaps_count(tmp_path: Path) -> None:
    [row] = limit_rows(write_sweep(tmp_path / "s", arms={**ARMS, "auto-300": AUTO["auto-300"]}), share=0.9)
    assert 0.9 < row.own.share <= 1 and row.rivals


def test_a_sweep_without_limits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no arm has a limit"):
        limit_rows(write_sweep(tmp_path / "s"))


def test_the_command_prints_the_verdicts(tmp_path: Path) -> None:
    write_sweep(tmp_path / "s", arms={**ARMS, **AUTO}, num_background=4, noise=0.005)
    done = CliRunner().invoke(cli, ["bench", "limits", str(tmp_path / "s")])
    assert done.exit_code == 0, done.output
    assert "layered: layered-4" in done.output and "none keeps it" in done.output and "yes" in done.output
