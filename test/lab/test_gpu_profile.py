"""What a profiler's trace says of the parts of a step, its table, and how an arm is profiled."""

from __future__ import annotations

import gzip
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_layered.errors import LabError
from sglang_layered_lab.bench.client_data import PlannedRequest
from sglang_layered_lab.bench.sweep_spec import Cell, read_sweep
from sglang_layered_lab.cost.coverage import COVERAGES
from sglang_layered_lab.cost.roofline import H200, Roofline
from sglang_layered_lab.cost.sizes import QWEN3_30B_A3B
from sglang_layered_lab.cost.ways import Beside, Way
from sglang_layered_lab.gpu import profiling
from sglang_layered_lab.gpu.kernel_parts import OTHER, StepTimes, part_of, step_times
from sglang_layered_lab.gpu.profile_table import Profile, profile_rows

CAMPAIGN = Path(__file__).resolve().parents[2] / "scripts" / "gpu" / "campaign"


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
    assert (decode.num_steps, decode.batch_size, prompt.num_steps) == (1, 2, 2)
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
    with pytest.raises(LabError, match="2 events"):
        step_times(marks("cpu", *NAMES[:2]), "cpu")


def test_decode_steps_of_one_number_of_rows_are_counted() -> None:
    names = ["step[DECODE bs=2]"] * 3 + ["step[EXTEND bs=1 toks=9]"] + ["step[DECODE bs=3]"] * 5
    decode, prompt = step_times(marks("cpu", *names), "cpu")
    assert (decode.num_steps, decode.batch_size, prompt.num_steps) == (4, 3, 1)


PROFILED = Profile(
    "layered-4",
    Way("layered", 4),
    8192,
    Beside(16, 2098),
    StepTimes(10, 16, {"experts": 0.02, "attention": 0.01}, window_s=0.04, busy_s=0.03),
    StepTimes(4, 17, {"experts": 0.06}, window_s=0.2, busy_s=0.1),
)


def test_parts_of_a_step_lie_beside_the_rooflines() -> None:
    model = Roofline(QWEN3_30B_A3B, COVERAGES["uniform"], H200)
    lines = list(profile_rows(PROFILED, model))
    decode = next(line for line in lines if line[1].startswith("decode") and line[2] == "experts")
    assert decode[3:5] == ["2.000", "67%"]
    assert float(decode[6]) == pytest.approx(2.0 / float(decode[5]), rel=0.01)
    assert [line[3] for line in lines if line[2] == "idle"] == ["1.000", "25.000"]
    assert {line[5] for line in profile_rows(PROFILED, None)} == {""}


class Fakes:
    """A server that is not there: the profiler's orders, and a trace of five steps for each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.orders: list[dict[str, Any]] = []
        server = profiling.Server("http://here", 151_936)
        stream = SimpleNamespace(prompt_tokens=2048, arrivals=[SimpleNamespace(num_tokens=7)])
        monkeypatch.setattr(profiling, "serving", lambda spec, log: nullcontext(server))
        monkeypatch.setattr(profiling, "run_repetition", lambda *_: SimpleNamespace(background=[stream] * 16))
        monkeypatch.setattr(profiling, "flush_cache", lambda url: None)
        monkeypatch.setattr(profiling, "run_client", self.run_client)
        monkeypatch.setattr(profiling.httpx, "post", self.post)
        self._stream = stream

    def run_client(self, url: str, planned: list[PlannedRequest], **asked: Any) -> Any:
        asked["on_ready"]()
        return SimpleNamespace(background=[self._stream] * len(asked["background"]))

    def post(self, url: str, json: dict[str, Any], **_: Any) -> Any:
        self.orders.append(json)
        write_trace(Path(json["output_dir"]))
        return SimpleNamespace(status_code=200)


def write_trace(folder: Path) -> None:
    trace = {"traceEvents": [event("aten::linear", 2100, 100, "cpu_op"), *marks("cpu", *NAMES)]}
    (folder / "x.trace.json.gz").write_bytes(gzip.compress(json.dumps(trace).encode()))


def cell_of(arm: str) -> Cell:
    return next(cell for cell in read_sweep(CAMPAIGN / "profile.toml").cells if cell.arm.name == arm)


def test_an_arm_is_profiled_when_its_streams_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes(monkeypatch)
    monkeypatch.setattr(profiling, "way_of", lambda *_: Way("layered", 2))
    seen = profiling.profile(cell_of("layered-16"), QWEN3_30B_A3B, tmp_path)
    assert (seen.prompt_tokens, seen.beside, seen.prompt.num_steps) == (8192, Beside(16, 2055), 2)
    assert seen.prompt.parts_s == pytest.approx({"dense products": 1e-4})
    assert fakes.orders[0]["num_steps"] == 2 + profiling.SPARE_STEPS
    assert fakes.orders[0]["activities"] == ["CPU"]


@pytest.mark.parametrize(("arm", "num_steps"), [("layered-16", 16), ("mixed-512", 17)])
def test_a_trace_with_other_steps_than_the_prompts_is_refused(
    arm: str, num_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fakes(monkeypatch)
    with pytest.raises(LabError, match=f"{num_steps} steps the trace has 2"):
        profiling.profile(cell_of(arm), QWEN3_30B_A3B, tmp_path)


def test_a_load_of_several_prompts_is_refused(tmp_path: Path) -> None:
    cell = read_sweep(CAMPAIGN / "stock.toml").cells[0]
    with pytest.raises(LabError, match="num_requests = 1"):
        profiling.profile(cell, QWEN3_30B_A3B, tmp_path)
