"""Times the kernels' cases, and shows and writes what came out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table
from sglang_layered_kernels.bench_case import BenchCase
from sglang_layered_kernels.registry import load_cases
from sglang_layered_kernels.roofline import PEAKS, Peaks, roofline_s
from sglang_layered_kernels.timing import Timing, time_call

from sglang_layered_lab.provenance import current_commit, installed_versions, this_machine


@dataclass(frozen=True)
class BenchRow:
    """One timed case. `roofline_fraction`: least possible / median time; None where peaks are unknown."""

    kernel: str
    name: str
    shape: dict[str, int | str]
    timing: Timing
    num_bytes: int
    num_flops: int
    roofline_fraction: float | None


def device_name(device: str) -> str:
    """The GPU's name as torch says it, or "cpu"."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def time_kernel(kernel: str, device: str, *, min_time_s: float = 0.2) -> Iterator[BenchRow]:
    """Time all cases of a kernel, one by one; none when the kernel has no case on `device`."""
    peaks = PEAKS.get(device_name(device))
    for case in load_cases(kernel, device):
        yield make_row(kernel, case, time_call(case.run, device, min_time_s=min_time_s), peaks)


def make_row(kernel: str, case: BenchCase, timing: Timing, peaks: Peaks | None) -> BenchRow:
    """Put a case and its time together."""
    least_s = None if peaks is None else roofline_s(case.num_bytes, case.num_flops, peaks)
    fraction = None if least_s is None else least_s / timing.median_s
    return BenchRow(kernel, case.name, case.shape, timing, case.num_bytes, case.num_flops, fraction)


def table(rows: Sequence[BenchRow], device: str) -> Table:
    """One line a row."""
    shown = Table(title=f"Kernels on {device_name(device)}")
    for name in ("kernel", "case", "shape"):
        shown.add_column(name)
    for name in ("median us", "fastest us", "cache", "MB", "GFLOP", "of roofline"):
        shown.add_column(name, justify="right")
    for row in rows:
        fraction = "-" if row.roofline_fraction is None else f"{row.roofline_fraction:.1%}"
        figures = (
            f"{row.timing.median_s * 1e6:,.1f}", f"{row.timing.fastest_s * 1e6:,.1f}", row.timing.cache,
            f"{row.num_bytes / 1e6:,.3f}", f"{row.num_flops / 1e9:,.3f}", fraction,
        )  # fmt: skip
        shape = " ".join(f"{name}={value}" for name, value in row.shape.items())
        shown.add_row(row.kernel, row.name, shape, *figures)
    return shown


def write_record(rows: Sequence[BenchRow], device: str, path: Path) -> None:
    """Write the rows as JSON, with where and with what they were made."""
    peaks = PEAKS.get(device_name(device))
    document = {
        "device": device_name(device),
        "peaks": None if peaks is None else asdict(peaks),
        "versions": installed_versions("triton", "flashinfer-python"),
        "commit": current_commit(),
        "machine": this_machine(),
        "units": "times in seconds of one call; roofline_fraction is least possible time / median_s",
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
