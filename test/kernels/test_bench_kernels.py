"""The bench of the kernels: which it finds, how it times, what it writes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from sglang_layered_kernels.bench import make_row
from sglang_layered_kernels.bench_case import BenchCase
from sglang_layered_kernels.registry import kernels_with_bench, load_cases
from sglang_layered_kernels.roofline import PEAKS, Peaks, roofline_s
from sglang_layered_kernels.timing import Timing, time_call

from sglang_layered.cli.main import cli
from sglang_layered.errors import KernelError

CASE = BenchCase("copy", {"rows": 3}, lambda: None, num_bytes=600, num_flops=1000)


def test_folders_with_a_bench_are_kernels(tmp_path: Path) -> None:
    for name in ("second", "first", "without"):
        (tmp_path / name).mkdir()
    for name in ("second", "first"):
        (tmp_path / name / "bench.py").touch()
    (tmp_path / "bench.py").touch()
    assert kernels_with_bench(tmp_path) == ("first", "second")


def test_every_kernel_folder_keeps_the_protocol() -> None:
    assert "expert_traffic" in kernels_with_bench()
    for kernel in kernels_with_bench():
        for case in load_cases(kernel, "cpu"):
            assert isinstance(case, BenchCase)
            assert case.num_bytes > 0 <= case.num_flops
            case.run()


def test_unknown_kernel_is_named() -> None:
    with pytest.raises(KernelError, match=r"'nope'.*expert_traffic"):
        load_cases("nope", "cpu")


def test_expert_traffic_bytes_are_ids_and_counters() -> None:
    eight_rows = load_cases("expert_traffic", "cpu")[0]
    assert eight_rows.shape["decode_rows"] == 8
    ids, counters_touched = 8 * 8 * 4, 2 * 64 + 7
    assert eight_rows.num_bytes == ids + counters_touched * 8 * 2


def test_roofline_is_the_slower_of_memory_and_arithmetic() -> None:
    h200 = PEAKS["NVIDIA H200"]
    assert roofline_s(4_800_000_000, 0, h200) == pytest.approx(1e-3)
    assert roofline_s(4_800_000, 989_000_000_000, h200) == pytest.approx(1e-3)
    assert roofline_s(0, 0, h200) == 0


def test_fraction_needs_known_peaks() -> None:
    timing = Timing(median_s=20.0, fastest_s=19.0, num_runs=3, cache="warm")
    assert make_row("k", CASE, timing, None).roofline_fraction is None
    assert make_row("k", CASE, timing, Peaks(100.0, 100.0)).roofline_fraction == pytest.approx(0.5)


def test_cpu_time_is_that_of_one_call() -> None:
    calls = []

    def sleep() -> None:
        calls.append(0)
        time.sleep(0.004)

    timing = time_call(sleep, "cpu", min_time_s=0.05)
    assert 0.004 <= timing.fastest_s <= timing.median_s < 0.1
    assert timing.cache == "warm"
    assert 0.05 / timing.median_s / 2 < timing.num_runs <= len(calls)


def test_command_writes_what_it_timed(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "kernels.json"
    arguments = ["bench", "kernels", "--device", "cpu", "--kernel", "expert_traffic", "--out", str(out)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads(out.read_text())
    assert [row["shape"] for row in record["rows"]] == [
        case.shape for case in load_cases("expert_traffic", "cpu")
    ]
    assert record["device"] == "cpu"
    assert record["peaks"] is None
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert all(row["timing"]["median_s"] > 0 and row["roofline_fraction"] is None for row in record["rows"])
    assert "decode_rows=64" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--kernel", "nope"], "nope"), (["--device", "cuda"], "--device cpu")]
)
def test_bad_options_end_with_one_error(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(cli, ["bench", "kernels", *arguments])
    assert isinstance(result.exception, KernelError)
    assert message in str(result.exception)


@pytest.mark.gpu
def test_cuda_time_of_a_copy_is_near_the_memory_bandwidth() -> None:
    source = torch.empty(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    timing = time_call(lambda: target.copy_(source), "cuda")
    assert timing.cache == "cold"
    peaks = PEAKS.get(torch.cuda.get_device_name())
    if peaks is None:
        pytest.skip(reason=f"peaks of {torch.cuda.get_device_name()} are not known")
    assert 0.5 < roofline_s(2 * 2**30, 0, peaks) / timing.median_s <= 1.02
