"""What a kernel folder offers to `sglang-layered bench kernels`: cases with their cost, no timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class BenchCase:
    """One call to time. `kernels/<name>/bench.py` returns a list of these from `cases(device: str)`.

    `run` makes the call once, on tensors made beforehand, and leaves the device unsynchronised. `num_bytes`
    are the bytes that the call must at least read and write, `num_flops` its floating-point operations
    (0: none).
    """

    name: str
    shape: dict[str, int | str]
    run: Callable[[], object]
    num_bytes: int
    num_flops: int
