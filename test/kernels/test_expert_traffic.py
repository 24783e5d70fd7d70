"""Expert traffic: the torch twin and the Triton kernel against sets and Counters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_layered_kernels.expert_traffic import ExpertTrafficCounter

from expert_traffic_oracle import Call, expected, read_layer
from sglang_layered.errors import KernelError

HERE = Path(__file__).parent


@st.composite
def call_lists(draw: st.DrawFn) -> tuple[int, int, int, list[Call]]:
    """num_layers, num_experts, top_k, calls; ids repeat inside rows and some are padding."""
    num_layers, num_experts = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 8, 60, 512]))
    top_k = draw(st.integers(1, 10))
    ids = st.integers(-2, num_experts - 1)
    rows = st.lists(st.lists(ids, min_size=top_k, max_size=top_k), max_size=12)
    calls = []
    for _ in range(draw(st.integers(0, 4))):
        drawn = draw(rows)
        calls.append(Call(draw(st.integers(0, num_layers - 1)), drawn, draw(st.integers(0, len(drawn)))))
    return num_layers, num_experts, top_k, calls


@settings(max_examples=150, deadline=None)
@given(
    case=call_lists(),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    as_tensor=st.booleans(),
    num_padding=st.integers(0, 3),
)
def test_torch_twin_is_the_oracle(
    case: tuple[int, int, int, list[Call]], dtype: torch.dtype, as_tensor: bool, num_padding: int
) -> None:
    num_layers, num_experts, top_k, calls = case
    counter = ExpertTrafficCounter(num_layers, num_experts, "cpu")
    for call in calls:
        ids = torch.tensor(call.rows, dtype=dtype).reshape(len(call.rows), top_k)
        if not as_tensor:
            counter.record(call.layer, ids, call.num_prompt_rows)
            continue
        padded = torch.cat([ids, torch.zeros(num_padding, top_k, dtype=dtype)])
        counter.record(call.layer, padded, torch.tensor([call.num_prompt_rows, len(call.rows)], dtype=dtype))
    traffic = counter.snapshot()
    got = [read_layer(traffic, layer) for layer in range(num_layers)]
    assert got == expected(calls, num_layers, num_experts)


def script(name: str, *arguments: str, **environment: str) -> dict[str, object]:
    command = [sys.executable, str(HERE / name), *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_triton_interpreter_is_the_oracle() -> None:
    report = script("expert_traffic_triton.py", "cpu", "42", TRITON_INTERPRET="1")
    assert (report["num_cases"], report["failures"]) == (42, [])
    assert "layer 0 saw 5 ids" in str(report["strays"])


def test_cpu_counter_does_not_import_triton() -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules\n"
        "from sglang_layered_kernels.expert_traffic import ExpertTrafficCounter as C\n"
        "C(1, 4, 'cpu').record(0, torch.zeros(1, 2, dtype=torch.int32))\n"
        "print(before, 'triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_reset_forgets_and_snapshots_stay() -> None:
    counter = ExpertTrafficCounter(1, 4, "cpu")
    counter.record(0, torch.tensor([[0, 1], [1, 2]], dtype=torch.int32), 1)
    before = counter.snapshot()
    counter.reset()
    counter.record(0, torch.tensor([[3, 3]], dtype=torch.int32), 0)
    assert before.union_experts.tolist() == [3]
    assert counter.snapshot().decode_tokens.tolist() == [[0, 0, 0, 2]]
    assert counter.snapshot().num_prompt_calls.tolist() == [0]
    with pytest.raises(ValueError, match="read-only"):
        before.num_calls += np.int64(1)


@pytest.mark.parametrize(
    ("layer", "ids", "cut", "names"),
    [
        (2, torch.zeros(1, 2, dtype=torch.int32), 0, "layer 2"),
        (-1, torch.zeros(1, 2, dtype=torch.int32), 0, "layer -1"),
        (0, torch.zeros(2, dtype=torch.int32), 0, "topk_ids"),
        (0, torch.zeros(3, 0, dtype=torch.int32), 0, "topk_ids"),
        (0, torch.zeros(1, 2), 0, "topk_ids"),
        (0, torch.zeros(1, 2, dtype=torch.int32, device="meta"), 0, "topk_ids"),
        (0, torch.zeros(1, 2, dtype=torch.int32), 2, "split"),
        (0, torch.zeros(1, 2, dtype=torch.int32), -1, "split"),
        (0, torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), "split"),
        (0, torch.zeros(1, 2, dtype=torch.int32), torch.zeros(2), "split"),
    ],
)
def test_bad_calls_are_named_and_not_counted(
    layer: int, ids: torch.Tensor, cut: int | torch.Tensor, names: str
) -> None:
    counter = ExpertTrafficCounter(2, 4, "cpu")
    with pytest.raises(KernelError, match=names):
        counter.record(layer, ids, cut)
    assert counter.snapshot().num_calls.tolist() == [0, 0]


def test_an_id_that_no_expert_has_is_not_lost_silently() -> None:
    counter = ExpertTrafficCounter(3, 4, "cpu")
    counter.record(1, torch.tensor([[0, 4]], dtype=torch.int64))
    with pytest.raises(KernelError, match="layer 1 saw 1 ids"):
        counter.snapshot()


@pytest.mark.parametrize("sizes", [(0, 4), (1, 0), (1, 5000)])
def test_bad_sizes_are_named(sizes: tuple[int, int]) -> None:
    with pytest.raises(KernelError, match="num_experts"):
        ExpertTrafficCounter(*sizes, "cpu")


def test_side_stream_needs_cuda() -> None:
    with pytest.raises(KernelError, match="side_stream"):
        ExpertTrafficCounter(1, 4, "cpu", side_stream=True)


@pytest.mark.gpu
def test_triton_on_cuda_is_the_oracle() -> None:
    report = script("expert_traffic_triton.py", "cuda", "140", TRITON_INTERPRET="0")
    assert (report["num_cases"], report["failures"]) == (140, [])
    assert "layer 0 saw 5 ids" in str(report["strays"])


def replayed_calls(counter: ExpertTrafficCounter, num_rows: int, top_k: int) -> list[Call]:
    """Capture one call of each of two layers, replay with new ids, cuts and padding; the calls replayed."""
    num_experts = 128
    ids = torch.zeros(2, num_rows, top_k, dtype=torch.int32, device="cuda")
    split = torch.zeros(2, dtype=torch.int32, device="cuda")
    for layer in range(2):  # compiles outside the capture
        counter.record(layer, ids[layer], split)
    counter.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(2):
            counter.record(layer, ids[layer], split)
        counter.join()
    assert counter.snapshot().num_calls.tolist() == [0, 0]
    calls = []
    for replay in range(5):
        num_prompt_rows, num_real_rows = replay * num_rows // 8, num_rows - replay
        split.copy_(torch.tensor([num_prompt_rows, num_real_rows], dtype=torch.int32))
        ids.copy_(torch.randint(-1, num_experts, ids.shape))
        graph.replay()
        rows = [ids[layer, :num_real_rows].tolist() for layer in range(2)]
        calls += [Call(layer, rows[layer], num_prompt_rows) for layer in range(2)]
    return calls


@pytest.mark.gpu
@pytest.mark.parametrize("side_stream", [False, True])
@pytest.mark.parametrize("num_rows", [16, 700])
def test_graph_replays_are_the_oracle(num_rows: int, side_stream: bool) -> None:
    counter = ExpertTrafficCounter(2, 128, "cuda", side_stream=side_stream)
    calls = replayed_calls(counter, num_rows, top_k=8)
    traffic = counter.snapshot()
    assert [read_layer(traffic, layer) for layer in range(2)] == expected(calls, 2, 128)


@pytest.mark.gpu
def test_recording_allocates_nothing_and_never_waits() -> None:
    counter = ExpertTrafficCounter(1, 128, "cuda")
    ids = torch.zeros(1024, 8, dtype=torch.int32, device="cuda")
    split = torch.tensor([100, 1000], device="cuda")
    counter.record(0, ids, split)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        counter.record(0, ids[:16], split)
        counter.record(0, ids, split)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
