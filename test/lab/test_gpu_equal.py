"""The best arm under a limit, its table and picture; what a profiler's trace says of the parts of a step."""

from __future__ import annotations

import gzip
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from sglang_layered.errors import GpuHostError
from sglang_layered_lab.bench import plots
from sglang_layered_lab.bench.sweep_spec import read_sweep
from sglang_layered_lab.cost.shape import QWEN3_30B_A3B
from sglang_layered_lab.gpu import profiling, suite
from sglang_layered_lab.gpu.budget import Budget
from sglang_layered_lab.gpu.duel import Point
from sglang_layered_lab.gpu.equal import at_limits, places, roofline
from sglang_layered_lab.gpu.figures import shape_of, step_model
from sglang_layered_lab.gpu.kernel_parts import OTHER, part_of, step_times
from sglang_layered_lab.gpu.pareto import ROOF, points
from sglang_layered_lab.gpu.profile_report import profile_rows
from sglang_layered_lab.gpu.profiles import GPU, PROFILES, Arm, profile_arms
from sglang_layered_lab.gpu.records import StageRecord, open_record
from sglang_layered_lab.gpu.report import equal_table, plain, stage_table
from sglang_layered_lab.gpu.stages import Job

REPO = Path(__file__).resolve().parents[2]
CAMPAIGN = REPO / "scripts" / "gpu" / "campaign"


def row(
    arm: str, ttft_s: float, gap_s: float, groups: int | None = None, streams: int = 16
) -> dict[str, Any]:
    runs = [
        {"prompt_s": [ttft_s * factor], "streams_s": [[0.0, gap_s, 1.5 * gap_s]], "num_groups": groups}
        for factor in (1.0, 0.9, 1.2)
    ]
    key = f"{arm}/b{streams}/p8192/g{groups}"
    found = {"key": key, "arm": arm, "is_layered": arm.startswith("layered"), "decode_rows": streams}
    return found | {
        "prompt_tokens": 8192, "num_groups": groups, "context_tokens": 2048, "repetitions": runs,
    }  # fmt: skip


ROWS = [
    row("layered-fused", 0.14, 0.011, 16),
    row("layered-fused", 0.11, 0.028, 4),
    row("mixed512", 0.28, 0.019),
    row("mixed2048", 0.15, 0.045),
    row("whole", 0.10, 0.110),
    {"key": "pdmux", "arm": "pdmux", "left_out": "refused"},
    row("whole", 0.08, 0.0, None, 0),
]


def test_the_soonest_arm_that_keeps_each_limit() -> None:
    [place] = places(ROWS)
    by_limit = {round(1e3 * each.limit_s): each for each in at_limits(place, None)}
    labels = {
        limit: {family: best.label for family, best in each.best.items()} for limit, each in by_limit.items()
    }
    assert labels[12] == {"layered": "fused G=16"}
    assert labels[20] == {"layered": "fused G=16", "chunked": "mixed512"}
    assert labels[60] == {"layered": "fused G=4", "chunked": "mixed2048"}
    assert by_limit[20].over_chunked == pytest.approx(0.5)
    assert by_limit[12].over_chunked is None and by_limit[20].over_roof is None
    best = by_limit[20].best["layered"]
    assert (best.ttft_s, best.low_s, best.high_s) == pytest.approx((0.14, 0.126, 0.168))


def test_the_roofline_under_a_limit_is_its_own_best_number_of_groups() -> None:
    [place] = places(ROWS)
    tight, loose = at_limits(place, QWEN3_30B_A3B, (12, 60))
    assert tight.roof is not None and loose.roof is not None
    assert tight.roof.num_steps > loose.roof.num_steps
    assert tight.roof.worst_gap_s is not None and tight.roof.worst_gap_s <= 0.012
    assert tight.over_roof == pytest.approx(0.14 / tight.roof.ttft_s)
    assert len(roofline(place, QWEN3_30B_A3B)) == 48


def test_tables_leave_out_what_did_not_start(tmp_path: Path) -> None:
    record = StageRecord("step", "gpu", rows=ROWS)
    assert plain(stage_table(record)).count("pdmux") == 1
    _, lines = equal_table(record)
    at_20 = next(line for line in lines if line[:3] == ["16", "8192", "20"])
    assert at_20[3:5] == ["mixed512", "280.00 [252.00, 336.00]"] and at_20[5] == "-" and at_20[9] == "0.50"


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_gpu_profile_has_a_roofline_and_groups_of_its_depth(name: str) -> None:
    profile = PROFILES[name]
    shape = shape_of(profile)
    assert (shape is None) == (profile.device == "cpu")
    if shape is not None:
        assert max(profile.num_groups) <= shape.num_layers
        assert profile.model_path is not None and (profile.model_path / "config.json").exists()


@pytest.mark.parametrize("path", sorted(CAMPAIGN.glob("*.toml")), ids=lambda path: path.stem)
def test_campaign_files_are_sweeps_of_models_that_are_there(path: Path) -> None:
    spec = read_sweep(path)
    assert spec.settings.name == path.stem and spec.settings.max_servers == 1
    model = spec.cells[0].spec.server.model
    assert isinstance(model, Path | str) and (REPO / model / "config.json").exists()


def test_only_measured_arms_are_on_the_front_of_the_picture() -> None:
    [place] = places(ROWS)
    shown = points(place, GPU)
    fronts = {point["label"] for point in shown if point["on_front"][plots.WORST]}
    assert fronts == {"fused G=16", "fused G=4", "whole"}
    roofs = [point for point in shown if point["mode"] == ROOF]
    assert {point["label"] for point in roofs} == {f"G={count}" for count in GPU.num_groups}
    assert not any(point["on_front"][plots.WORST] for point in roofs)


def test_pictures_lie_beside_their_record(tmp_path: Path) -> None:
    StageRecord("step", "gpu", rows=ROWS, path=tmp_path / "day1" / "step.json").write()
    result = CliRunner().invoke(suite.main, ["pareto", "--records", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "day1" / "pareto-gpu-b16-p8192.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("fused_moe_kernel", "experts"),
        ("void moe_align_block_size_kernel<int>", "routing"),
        ("topkGatingSoftmax", "routing"),
        ("void flashinfer::BatchPrefillWithPagedKVCacheKernel<...>", "attention"),
        ("nvjet_tst_128x64_64x5_1x2_h_bz_TNT", "dense products"),
        ("aten::linear", "dense products"),
        ("void flashinfer::norm::FusedAddRMSNormKernel", "norms, positions, activations"),
        ("ncclDevKernel_AllReduce_Sum_bf16", "communication"),
        ("void at::native::vectorized_elementwise_kernel", OTHER),
        ("Memcpy DtoD", "memory"),
    ],
)
def test_kernels_by_their_names(name: str, part: str) -> None:
    assert part_of(name) == part


def event(name: str, start: float, duration: float, cat: str = "kernel", tid: int = 7) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": duration, "pid": 0, "tid": tid}


def marks(device: str, *names: str) -> list[dict[str, Any]]:
    """Steps of 1000 us each."""
    kind = "gpu_user_annotation" if device == "cuda" else "user_annotation"
    return [event(name, 1000 * place, 600, kind) for place, name in enumerate(names)]


NAMES = (
    "step[DECODE bs=2]",
    "step[DECODE bs=2]",
    "step[MIXED bs=3]",
    "step[MIXED bs=3]",
    "step[DECODE bs=3]",
)


def test_a_traces_steps_on_both_devices() -> None:
    kernels = [
        event("fused_moe_kernel", 0, 100),  # of the first step, which is left out
        event("fused_moe_kernel", 1000, 100),
        event("nvjet_a", 1050, 100),
        event("sampling", 1900, 50),  # after its mark, before the next step
        event("nvjet_a", 2100, 300),
        event("fused_moe_kernel", 3000, 500),
        event("fused_moe_kernel", 4000, 500),  # of the last
        event("aten::mm", 1000, 900, "cpu_op"),
    ]
    second_stream = event(NAMES[1], 1100, 100, "gpu_user_annotation", tid=8)
    decode, prompt = step_times([*kernels, second_stream, *marks("cuda", *NAMES)], "cuda")
    assert (decode.num_steps, prompt.num_steps) == (1, 2)
    assert decode.parts_s == pytest.approx({"experts": 1e-4, "dense products": 1e-4, "sampling": 5e-5})
    assert (decode.window_s, decode.busy_s) == pytest.approx((1e-3, 2e-4))
    assert prompt.parts_s == pytest.approx({"dense products": 3e-4, "experts": 5e-4})
    nested = [
        event("aten::linear", 1000, 100, "cpu_op"),
        event("aten::addmm", 1010, 80, "cpu_op"),
        event("aten::copy_", 1100, 20, "cpu_op"),
        event("aten::copy_", 1010, 20, "cpu_op", tid=8),
        {"ph": "M", "name": "process_name"},
    ]
    decode, _ = step_times([*nested, *marks("cpu", *NAMES)], "cpu")
    assert decode.parts_s == pytest.approx({"dense products": 1e-4, "memory": 4e-5})
    with pytest.raises(GpuHostError, match="2 events"):
        step_times(marks("cpu", *NAMES[:2]), "cpu")


PROFILED = {
    "key": "layered-fused", "arm": "layered-fused", "is_layered": True, "decode_rows": 16,
    "prompt_tokens": 8192, "num_steps": 4, "context_tokens": 2048, "repetitions": [{"generated_tokens": 50}],
    "decode": {
        "num_steps": 10, "parts_s": {"experts": 0.02, "attention": 0.01}, "window_s": 0.04, "busy_s": 0.03,
    },
    "prompt": {"num_steps": 4, "parts_s": {"experts": 0.06}, "window_s": 0.2, "busy_s": 0.1},
}  # fmt: skip


def test_parts_of_a_step_lie_beside_the_rooflines() -> None:
    lines = profile_rows(PROFILED, step_model(QWEN3_30B_A3B, "uniform"))
    decode = next(line for line in lines if line[1].startswith("decode") and line[2] == "experts")
    assert decode[3:5] == ["2.000", "67%"]
    assert float(decode[6]) == pytest.approx(2.0 / float(decode[5]), rel=0.01)
    assert [line[3] for line in lines if line[2] == "idle"] == ["1.000", "25.000"]
    record = StageRecord("profile", "gpu", rows=[PROFILED])
    assert len(plain(stage_table(record)).splitlines()) == 1 + len(lines)


def test_the_profile_stage_reads_the_trace_of_the_prompts_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(
        open_record(tmp_path, "profile", "cpu", again=False), PROFILES["cpu"], tmp_path / "logs", Budget(60)
    )
    orders: list[dict[str, Any]] = []

    def start(url: str, json: dict[str, Any], **kwargs: Any) -> Any:
        orders.append(json)
        write_trace(Path(json["output_dir"]))
        return SimpleNamespace(status_code=200)

    def write_trace(folder: Path) -> None:
        trace = {"traceEvents": [event("aten::linear", 2100, 100, "cpu_op"), *marks("cpu", *NAMES)]}
        (folder / "x.trace.json.gz").write_bytes(gzip.compress(json.dumps(trace).encode()))

    monkeypatch.setattr(profiling.httpx, "post", start)
    crowd = SimpleNamespace(streams=[SimpleNamespace(arrivals_s=[0.0] * 7)])

    def measure(point: Point, crowd: Any, timeout_s: float, before: Any = None) -> None:
        if before is not None:
            before()

    running: Any = SimpleNamespace(
        base_url="http://here", arm=Arm("mixed128"), crowd=lambda *_: nullcontext(crowd), measure=measure
    )
    row = profiling._profiled(job, running, 2)
    assert row["prompt"]["num_steps"] == 2 and row["decode"]["num_steps"] == 1
    assert row["prompt"]["parts_s"] == pytest.approx({"dense products": 1e-4})
    assert orders[0]["num_steps"] == 2 + profiling.SPARE_STEPS and orders[0]["activities"] == ["CPU"]
    with pytest.raises(GpuHostError, match="5 steps the trace has 2"):
        profiling._profiled(job, running, 5)


def test_the_arms_that_are_profiled() -> None:
    assert profiling.num_prompt_steps(Arm("mixed128"), PROFILES["cpu"]) == 5  # 512 tokens, 126 a step
    assert profiling.num_prompt_steps(profile_arms(GPU)[0], GPU) == 16
    assert [arm.name for arm in profile_arms(replace(GPU, chunk_tokens=(512, 2048)))] == [
        "layered-fused",
        "mixed512",
    ]
