"""Real layered decode graphs beside the eager forward and the stock graph; prints one JSON line last.

Usage: gpu_decode_graphs.py MODEL DTYPE ATTENTION_BACKEND GRANULARITY. One scheduler a process, so each case
of the test is a process.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from decode_bench import Bench, caught_decode
from harness import SteppedScheduler

BUCKETS = (1, 2, 4, 8)
CUTS = ((0, 2), (0, 8), (1, 3), (2, 5), (4, 6), (6, 8), (7, 8))


def milliseconds(run: Callable[[], Any], times: int = 50) -> float:
    """Mean device and launch time of a call, after a warm-up."""
    for _ in range(5):
        run()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / times


def main(model: str, dtype: str, backend: str, granularity: str) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    stepped = SteppedScheduler(
        Path(model),
        device="cuda",
        dtype=dtype,
        attention_backend=backend,
        moe_runner_backend="triton",
        cuda_graph_bs_decode=list(BUCKETS),
        layered_graph_granularity=int(granularity),
        max_total_tokens=3000,
        layered_group_tokens=64,
        chunked_prefill_size=512,
        disable_overlap_schedule=True,
    )
    graphs = stepped.loop._execution._runner.decode_paths.graphs
    assert graphs is not None, "no layered decode graphs were captured"
    bench = Bench(stepped.scheduler.tp_worker.model_runner, caught_decode(stepped, 8))
    stock = bench.model_runner.decode_cuda_graph_runner
    with torch.no_grad():
        before = stock.execute(bench.rows(7)).next_token_logits.clone()
    differences = {}
    for num_rows in (1, 2, 3, 5, 7, 8):
        batch = bench.rows(num_rows)
        expected = bench.whole(batch)
        found = [bench.around(graphs, batch, *cut).clone() - expected for cut in CUTS]
        differences[num_rows] = max(difference.abs().max().item() for difference in found)
    with torch.no_grad():
        after = stock.execute(bench.rows(7)).next_token_logits
    record = {
        "largest_logit": expected.abs().max().item(),
        "differences": differences,
        "stock_unchanged": torch.equal(before, after),
        "graphs_ms": milliseconds(lambda: bench.around(graphs, batch, 4, 5)),
        "eager_ms": milliseconds(lambda: bench.whole(batch)),
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
