"""The one function that times a kernel. Says whether its inputs were in the cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

MIN_RUNS, MAX_RUNS = 10, 2000
FLUSH_BYTES = 512 * 2**20  # far above any L2; and zeroing it takes longer than a launch on the host


@dataclass(frozen=True)
class Timing:
    """Seconds of one call. `cache` is cold when the device's L2 was flushed before each run."""

    median_s: float
    fastest_s: float
    num_runs: int
    cache: Literal["cold", "warm"]


def time_call(run: Callable[[], object], device: str, *, min_time_s: float = 0.2) -> Timing:
    """Time `run` on `device`, "cuda" or "cpu", for at least `min_time_s` after a warm-up.

    On CUDA each run lies between two events, cold, with the host ahead of the device. On CPU runs follow each
    other, warm, with torch's current number of threads.
    """
    for _ in range(3):
        run()
    return _time_cuda(run, min_time_s) if device == "cuda" else _time_cpu(run, min_time_s)


def _time_cpu(run: Callable[[], object], min_time_s: float) -> Timing:
    from torch.utils.benchmark import Timer

    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    measured = timer.blocked_autorange(min_run_time=min_time_s)
    num_runs = len(measured.times) * measured.number_per_run
    return Timing(measured.median, min(measured.times), num_runs, "warm")


def _time_cuda(run: Callable[[], object], min_time_s: float) -> Timing:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    first_s = statistics.median(_event_times_s(run, flush, MIN_RUNS))
    num_runs = min(max(MIN_RUNS, round(min_time_s / max(first_s, 1e-7))), MAX_RUNS)
    times_s = _event_times_s(run, flush, num_runs)
    return Timing(statistics.median(times_s), min(times_s), num_runs, "cold")


def _event_times_s(run: Callable[[], object], flush: torch.Tensor, num_runs: int) -> Sequence[float]:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(num_runs)]
    for start, end in events:
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]
