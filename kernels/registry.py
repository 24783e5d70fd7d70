"""Which kernels can be timed: every folder beside this file with a `bench.py`. No list to keep."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from sglang_layered_kernels.bench_case import BenchCase

from sglang_layered.errors import KernelError


def kernels_with_bench(root: Path = Path(__file__).parent) -> tuple[str, ...]:
    """Names of the folders in `root` that offer a bench, sorted; imports none of them."""
    return tuple(sorted(path.parent.name for path in root.glob("*/bench.py")))


def load_cases(kernel: str, device: str) -> list[BenchCase]:
    """Cases of one kernel for `device`, "cpu" or "cuda"; none when it does not run there.

    Raises:
        KernelError: there is no such kernel, or its bench offers no cases.

    """
    known = kernels_with_bench()
    if kernel not in known:
        raise KernelError(f"no bench of a kernel {kernel!r}; --kernel can be one of: {', '.join(known)}")
    module = import_module(f"sglang_layered_kernels.{kernel}.bench")
    cases: Callable[[str], list[BenchCase]] | None = getattr(module, "cases", None)
    if cases is None:
        raise KernelError(f"kernels/{kernel}/bench.py has no cases(device); see kernels/README.md")
    return cases(device)
