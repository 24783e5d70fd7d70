"""The GPU suite without servers: resuming, time limits, records, figures, tables, risks; fake stages."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sglang_layered.errors import GpuHostError
from sglang_layered_lab.gpu import first_check, suite
from sglang_layered_lab.gpu.budget import Budget, BudgetSpent
from sglang_layered_lab.gpu.correct import _without, cases, compare, judge_sanitizer
from sglang_layered_lab.gpu.duel import Point, StepLog, points_of
from sglang_layered_lab.gpu.figures import bound_of, figures
from sglang_layered_lab.gpu.profiles import PROFILES, Arm, serve_arms, step_arms
from sglang_layered_lab.gpu.records import StageRecord, open_record, read_records
from sglang_layered_lab.gpu.report import document, plain, stage_table
from sglang_layered_lab.gpu.risks import RISKS, advice, find_risks, table
from sglang_layered_lab.gpu.stages import Job, run_command

REPO = Path(__file__).resolve().parents[2]
MIXED, LAYERED = Arm("mixed512", ("--enable-mixed-chunk",)), Arm("layered-fused", (), True)


def job(folder: Path, budget_s: float = 60, only: tuple[str, ...] = ()) -> Job:
    record = open_record(folder, "smoke", "cpu", again=False)
    return Job(record, PROFILES["cpu"], folder / "logs", Budget(budget_s), only)


def point_row(arm: str = "layered-fused", **changes: Any) -> dict[str, Any]:
    """A prompt whose first token comes 0.4 s after it was sent, in two groups, beside one stream."""
    run = {
        "prompt_s": [0.4, 0.41],
        "streams_s": [[-0.3, -0.2, -0.1, 0.15, 0.39, 0.5]],
        "steps_s": [0.18, 0.2],
        "num_groups": 2,
        "decode_steps_s": [0.09, 0.11, 0.1],
    }
    row = {"key": f"{arm}/b1", "arm": arm, "is_layered": arm.startswith("layered"), "decode_rows": 1}
    row |= {"prompt_tokens": 8192, "num_groups": 2, "context_tokens": 2048, "start_s": 9.0}
    return row | {"repetitions": [run]} | changes


def stock_row(arm: str, decode_rows: int) -> dict[str, Any]:
    run = {"prompt_s": [0.5], "streams_s": [[-0.1, 0.6]] if decode_rows else []}
    return point_row(arm, decode_rows=decode_rows, repetitions=[run])


def test_a_stage_that_runs_out_of_time_goes_on_where_it_stopped(tmp_path: Path) -> None:
    begun: list[str] = []

    def stage(work: Job) -> None:
        for name in ("a", "b", "c"):
            if not work.record.has(name):
                begun.append(name)
                if begun == ["a", "b"]:
                    time.sleep(30)  # hangs: the limit must end it
                work.record.add({"key": name})

    started_s = time.monotonic()
    first = suite.run_stage(stage, job(tmp_path, budget_s=0.3))
    assert time.monotonic() - started_s < 5
    assert (first.status, [row["key"] for row in first.rows]) == ("partial", ["a"])
    assert "run the same command again" in first.problem
    second = suite.run_stage(stage, job(tmp_path))
    assert (second.status, second.problem, begun) == ("done", "", ["a", "b", "b", "c"])
    assert [row["key"] for row in read_records(tmp_path)[0].rows] == ["a", "b", "c"]
    assert second.elapsed_s >= 0.3


def test_the_limit_interrupts_a_handler_of_all_failures(tmp_path: Path) -> None:
    def stage(work: Job) -> None:
        while True:
            try:
                time.sleep(10)
            except Exception:  # as a client library may do
                continue

    assert suite.run_stage(stage, job(tmp_path, budget_s=0.2)).status == "partial"


def test_need_refuses_what_does_not_fit() -> None:
    budget = Budget(5)
    budget.need(4)
    with pytest.raises(BudgetSpent):
        budget.need(6)


def test_a_command_that_outlives_the_budget_is_killed(tmp_path: Path) -> None:
    budget = Budget(0.5)
    started_s = time.monotonic()
    with pytest.raises(BudgetSpent), budget.enforced():
        run_command([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", budget)
    assert time.monotonic() - started_s < 10


def test_a_failed_command_shows_the_end_of_its_log(tmp_path: Path) -> None:
    code = "print('before'); import nowhere_to_be_found"
    with pytest.raises(GpuHostError, match="nowhere_to_be_found") as caught:
        run_command([sys.executable, "-c", code], tmp_path / "log", Budget(30))
    assert [risk.name for risk in find_risks(str(caught.value))] == ["R1"]
    assert "make_bundle --add" in advice(str(caught.value))


def invoke(monkeypatch: pytest.MonkeyPatch, stage: Any, *arguments: str) -> Any:
    monkeypatch.setattr(suite, "_environment", dict)
    command = suite._command("smoke", stage)
    return CliRunner().invoke(command, ["--profile", "cpu", *arguments])


def smoke_row(key: str) -> dict[str, Any]:
    return {"key": key, "mode": "chunked", "tokens": [1, 2], "start_s": 3.0}


def test_a_finished_stage_is_skipped_unless_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def stage(work: Job) -> None:
        runs.append(len(work.record.rows))
        work.record.add(smoke_row("stock"))

    for again in ((), (), ("--again",)):
        result = invoke(monkeypatch, stage, "--out", str(tmp_path), *again)
        assert result.exit_code == 0, result.output
        assert result.output.splitlines()[-1].startswith("smoke: done, 1 rows")
    assert runs == [0, 0]


def test_a_stage_of_which_only_a_part_was_asked_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = invoke(
        monkeypatch, lambda work: work.record.add(smoke_row("x")), "--out", str(tmp_path), "--only", "x"
    )
    assert "smoke: partial" in result.output


def test_a_failed_stage_says_what_to_try_and_ends_with_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(work: Job) -> None:
        work.record.add(smoke_row("stock"))
        raise RuntimeError("server ended; its log ends with\ntorch.OutOfMemoryError: CUDA out of memory")

    result = invoke(monkeypatch, stage, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "try R16" in result.output
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["server", "stock", "smoke:"]


def test_the_other_profiles_record_is_not_overwritten(tmp_path: Path) -> None:
    open_record(tmp_path, "step", "cpu", again=False).write()
    with pytest.raises(GpuHostError, match="--profile cpu"):
        open_record(tmp_path, "step", "gpu", again=False)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "step.json").write_text("{")
    with pytest.raises(GpuHostError, match=r"step\.json is no record"):
        open_record(tmp_path, "step", "gpu", again=False)


def test_points_of_layered_arms_have_groups_only_beside_decode() -> None:
    points = points_of(LAYERED, (2, 0), (512,), (4, 1))
    assert points == [Point(2, 512, 4), Point(2, 512, 1), Point(0, 512)]
    assert points_of(MIXED, (2, 0), (512,), (4, 1)) == [Point(2, 512), Point(0, 512)]
    assert len({point.key(LAYERED) for point in points}) == 3


def test_arms_of_the_step_table_and_of_the_duel() -> None:
    names = [arm.name for arm in step_arms(PROFILES["gpu"])]
    assert names[0] == "layered-fused"
    assert set(names) == {f"layered-{each}" for each in ("fused", "sequential", "concurrent")} | {
        "whole",
        "pdmux",
        *(f"mixed{size}" for size in (512, 1024, 2048, 4096)),
    }
    assert [arm.name for arm in serve_arms(PROFILES["gpu"])] == [
        "default",
        "mixed2048",
        "mixed512",
        "layered",
    ]


def test_figures_by_hand() -> None:
    found = figures(point_row())
    assert (found.ttft_s, found.num_steps) == (0.4, 2)
    assert found.worst_gap_s == pytest.approx(0.25)  # from -0.1 to 0.15, as the prompt arrived
    assert found.steady_gap_s == pytest.approx(0.1)
    assert found.step_sum_s == pytest.approx(0.38)
    assert (found.worst_step_s, found.decode_s) == (0.2, 0.1)
    without = figures(stock_row("whole", 0))
    assert (without.worst_gap_s, without.step_sum_s, without.decode_s) == (None, None, None)


def test_bounds_of_rows_are_those_of_the_anchors() -> None:
    row = point_row(decode_rows=16, num_groups=16)
    row["repetitions"][0]["num_groups"] = 16
    bound = bound_of(row, "paper")
    assert 1000 * bound.ttft_s == pytest.approx(206, abs=0.6)
    mixed = bound_of(stock_row("mixed512", 16), "uniform")
    assert mixed.num_steps == 17  # SGLang's chunk counts the 16 decode rows; the anchors' 283 ms do not
    assert 1000 * mixed.ttft_s == pytest.approx(298, abs=0.6)
    whole = bound_of(stock_row("whole", 16), "paper")
    assert whole is not None and 1000 * whole.ttft_s == pytest.approx(90, abs=0.6)


def test_step_log_takes_the_steps_of_one_prompt(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    event = {"event": "step_done", "kind": "layered", "num_decode_rows": 3, "num_groups": 2}
    decode = {"event": "step_done", "kind": "decode", "prompt": {}, "group_index": 0, "duration_s": 0.5}
    old = event | {"prompt": {"old": 9}, "group_index": 1, "duration_s": 9.0}
    lines = [
        event | {"prompt": {"mine": 9}, "group_index": each, "duration_s": 1.0 + each} for each in (0, 1)
    ]
    path.write_text(json.dumps(old) + "\n")
    log = StepLog(path)
    log.skip()
    with path.open("a") as file:
        file.write("".join(json.dumps(each) + "\n" for each in [decode, {"event": "group_done"}, *lines]))
        file.write(json.dumps(decode | {"duration_s": 7.0}) + "\n")  # beside the prompt's own second token
        file.write('{"event": "step_d')  # the server is writing
    seen = log.around("mine")
    assert (seen["steps_s"], seen["decode_steps_s"], seen["num_groups"]) == ([1.0, 2.0], [0.5], 2)


def test_document_without_records_says_so_and_is_the_one_in_the_repository() -> None:
    assert "Nothing has been measured on a GPU yet" in document([])
    folder = REPO / "results" / "h200"
    assert (folder / "README.md").read_text() == document(read_records(folder))


def test_document_shows_gpu_records_and_leaves_cpu_ones_out(tmp_path: Path) -> None:
    where = {"machine": {"gpus": ["NVIDIA H200"]}, "versions": {"torch": "2.11.0"}, "commit": "abc"}
    gpu = StageRecord("step", "gpu", "done", environment=where, path=tmp_path / "day1" / "step.json")
    gpu.add(point_row())
    gpu.add(stock_row("mixed512", 16))
    cpu = StageRecord("smoke", "cpu", "done", path=tmp_path / "day1" / "smoke.json")
    cpu.add(smoke_row("stock"))
    result = CliRunner().invoke(suite.main, ["table", "--records", str(tmp_path)])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "README.md").read_text()
    assert "## step (day1): done" in text and "NVIDIA H200; torch 2.11.0; commit abc" in text
    assert "| layered-fused | 1 | 8192 | 2 | 400.00 | 250.00 | 100.00 | 380.00 | 200.00 | 100.00 |" in text
    assert "| mixed512 | 16 | 8192 | - | 500.00 | 700.00 |" in text
    assert "1.68" in text  # 500 ms over the roofline's 298
    assert "smoke" not in text and "Nothing has been measured" not in text
    check = ["table", "--check", "--records", str(tmp_path)]
    assert CliRunner().invoke(suite.main, check).exit_code == 0
    (tmp_path / "README.md").write_text("old")
    assert CliRunner().invoke(suite.main, check).exit_code == 1


def test_tables_of_all_stages_are_plain_text() -> None:
    correct = StageRecord("correct", "gpu")
    correct.rows = [
        {"key": "tiny/fa3/page1/compare", "left_out": "no flash_ops"},
        {"key": "tiny/triton/page1/stock"},
        {"key": "tiny/triton/page1/layered-fused", "agreement": 1.0, "first_tokens": 1.0}
        | {"max_logprob_diff": 0.001},
        {"key": "pytest", "ok": True, "output": ["9 passed"]},
    ]
    lines = plain(stage_table(correct)).splitlines()
    assert len(lines) == 4 and "100.0%" in lines[2] and "9 passed" in lines[3]
    kernels = StageRecord("kernels", "gpu", rows=[{"key": "bench", "output": "a 1\nb 2"}])
    assert plain(stage_table(kernels)).splitlines()[1:] == ["a 1", "b 2"]


def test_comparison_stops_at_the_first_other_token() -> None:
    stock = [([1, 2, 3, 4], [-0.1, -0.2, -0.3, -0.4]), ([5, 6], [-1.0, -1.0])]
    layered = [([1, 2, 9, 4], [-0.1, -0.25, -9.0, -9.0]), ([5, 6], [-1.0, -1.01])]
    assert compare(stock, stock) == {"agreement": 1.0, "first_tokens": 1.0, "max_logprob_diff": 0.0}
    assert compare(stock, layered) == {"agreement": 4 / 6, "first_tokens": 1.0, "max_logprob_diff": 0.05}
    assert compare(stock, [([9, 2, 3, 4], [0.0] * 4), layered[1]])["first_tokens"] == 0.5


def test_cases_cover_backends_and_page_sizes() -> None:
    found = {(case.backend, case.page_size) for case in cases(PROFILES["gpu"]) if case.model != "shapes"}
    assert found == {(name, page) for name in ("triton", "flashinfer", "fa3") for page in (1, 16, 64)}
    assert {case.backend for case in cases(PROFILES["gpu"]) if case.is_exact} == {"triton"}
    flags = cases(PROFILES["gpu"])[0].flags(PROFILES["gpu"])
    assert flags.count("--dtype") == flags.count("--attention-backend") == 1 and "dummy" not in flags
    assert _without(["--a", "1", "--b", "--c", "2"], "--a", "--c") == ["--b"]


def test_memory_checker_must_have_run_and_found_nothing(tmp_path: Path) -> None:
    banner = "========= COMPUTE-SANITIZER\nready\n"
    judge_sanitizer(banner, tmp_path)
    with pytest.raises(GpuHostError, match="did not start"):
        judge_sanitizer("ready", tmp_path)
    with pytest.raises(GpuHostError, match="found 1 errors"):
        judge_sanitizer(banner + "========= Invalid __global__ write of size 4 bytes\n", tmp_path)


def test_risks_are_those_of_the_document() -> None:
    assert table() in (REPO / "docs" / "gpu-host.md").read_text()
    assert len({risk.name for risk in RISKS}) == len(RISKS)
    assert "docs/gpu-host.md" in advice("something unheard of")


def test_first_check_goes_on_after_a_failure_and_names_the_fallback(capsys: pytest.CaptureFixture) -> None:
    def broken() -> str:
        raise ImportError("no such library")

    checks = (("good", lambda: "fine", "R1"), ("bad", broken, "R7"), ("last", lambda: "fine", ""))
    assert first_check.main(checks) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["OK", "FAIL", "OK"]
    assert "R7: `--sampling-backend pytorch`" in lines[1]
    assert {risk for *_, risk in first_check.CHECKS} - {""} <= {risk.name for risk in RISKS}
