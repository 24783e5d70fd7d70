"""Benchmark of expert traffic: a decode step's rows, a hybrid layer's, and a step of 48 layers as a graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from sglang_layered_kernels.bench_case import BenchCase
from sglang_layered_kernels.expert_traffic.counter import ExpertTrafficCounter

NUM_EXPERTS, TOP_K, NUM_LAYERS = 128, 8, 48  # Qwen3-30B-A3B
ROWS = ((0, 8), (0, 64), (0, 256), (2048, 16), (8192, 16))  # prompt rows, decode rows


def cases(device: str) -> list[BenchCase]:
    """One call a case; on CUDA also all layers of a decode step, replayed as one graph."""
    single = [_case("layer", device, *rows, num_layers=1) for rows in ROWS]
    if device != "cuda":
        return single
    return single + [_case("step graph", device, 0, rows, num_layers=NUM_LAYERS) for rows in (8, 64)]


def _case(name: str, device: str, num_prompt_rows: int, num_decode_rows: int, num_layers: int) -> BenchCase:
    num_rows = num_prompt_rows + num_decode_rows
    scores = torch.rand(num_rows, NUM_EXPERTS, device=device)
    ids = scores.topk(TOP_K).indices.to(torch.int32)
    counter = ExpertTrafficCounter(num_layers, NUM_EXPERTS, device)
    call = partial(_record_all, counter, ids, num_prompt_rows, num_layers)
    num_counters = 2 * min(NUM_EXPERTS, num_rows * TOP_K) + 7
    shape: dict[str, int | str] = {
        "prompt_rows": num_prompt_rows,
        "decode_rows": num_decode_rows,
        "layers": num_layers,
    }
    num_bytes = num_layers * (ids.numel() * ids.element_size() + 2 * num_counters * 8)
    return BenchCase(name, shape, call if num_layers == 1 else _captured(call), num_bytes, num_flops=0)


def _record_all(
    counter: ExpertTrafficCounter, ids: torch.Tensor, num_prompt_rows: int, num_layers: int
) -> None:
    for layer in range(num_layers):
        counter.record(layer, ids, num_prompt_rows)


def _captured(call: Callable[[], None]) -> Callable[[], object]:
    call()  # compiles before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
