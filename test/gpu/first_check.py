"""First minute on a GPU host, after install.sh: does each kind of kernel load, and compute what torch does?

One line a check, OK or FAIL; a FAIL names the risk and what to try. Exit status 1 if any failed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from risks import RISKS

PACKAGES = "torch triton transformers tokenizers sglang sglang-kernel flashinfer-python apache-tvm-ffi numpy"
MAX_ERROR = 0.05  # bf16, values near 1


def versions() -> str:
    """What is installed; a missing package is a failure."""
    found = []
    for name in PACKAGES.split():
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError as error:
            raise RuntimeError(f"{name} is not installed") from error
    return ", ".join(found)


def device() -> str:
    """The GPU torch sees."""
    import torch

    return f"{torch.cuda.get_device_name()}, compute capability {torch.cuda.get_device_capability()}"


def sgl_kernel_norm() -> str:
    """A kernel of sgl_kernel's sm_90 library."""
    import sgl_kernel
    import torch

    rows = torch.randn(8, 2048, device="cuda", dtype=torch.bfloat16)
    weight = torch.ones(2048, device="cuda", dtype=torch.bfloat16)
    wide = rows.float()
    expected = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return _error(sgl_kernel.rmsnorm(rows, weight, 1e-6), expected)


def tvm_ffi(width: int) -> Callable[[], str]:
    """One of SGLang's own JIT kernels: width 1024 is compiled in advance when carried, 512 never."""

    def check() -> str:
        from sglang.kernels.ops.kvcache import kvcache

        return str(kvcache._jit_kvcache_module(width, width))[:60]

    return check


def flashinfer_paged(backend: str) -> Callable[[], str]:
    """FlashInfer's paged prefill, 32 query and 4 KV heads of size 128, page size 1."""

    def check() -> str:
        import flashinfer
        import torch

        def index(*values: int) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device="cuda")

        num_rows, num_tokens, options = 64, 300, {"device": "cuda", "dtype": torch.bfloat16}
        space = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(space, "NHD", backend=backend)
        query = torch.randn(num_rows, 32, 128, **options)
        pages = torch.randn(num_tokens, 2, 1, 4, 128, **options)
        where = torch.arange(num_tokens, dtype=torch.int32, device="cuda")
        bounds = index(0, num_rows), index(0, num_tokens), where, index(1)
        wrapper.plan(*bounds, 32, 4, 128, 1, causal=False, q_data_type=torch.bfloat16)
        key, value = (pages[:, part, 0].repeat_interleave(8, 1).transpose(0, 1).float() for part in (0, 1))
        attend = torch.nn.functional.scaled_dot_product_attention
        return _error(
            wrapper.run(query, pages), attend(query.transpose(0, 1).float(), key, value).transpose(0, 1)
        )

    return check


def sampling() -> str:
    """FlashInfer's sampling: tokens inside the vocabulary."""
    import flashinfer
    import torch

    chances = torch.softmax(torch.randn(4, 151936, device="cuda"), -1)
    tokens = flashinfer.sampling.top_k_top_p_sampling_from_probs(chances, 20, 0.9).tolist()
    if not all(0 <= token < 151936 for token in tokens):
        raise RuntimeError(f"tokens {tokens}")
    return f"tokens {tokens}"


def _error(got: Any, expected: Any) -> str:
    largest = float((got.float() - expected.float()).abs().max())
    if not largest <= MAX_ERROR:  # also when it is no number
        raise RuntimeError(f"largest error {largest}")
    return f"largest error {largest:.4f}"


CHECKS: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("versions", versions, "R1"),
    ("device", device, ""),
    ("sgl_kernel, sm_90", sgl_kernel_norm, "R2"),
    ("SGLang's JIT kernel, carried", tvm_ffi(1024), "R3"),
    ("SGLang's JIT kernel, compiled here", tvm_ffi(512), "R4"),
    ("FlashInfer fa2, paged", flashinfer_paged("fa2"), "R5"),
    ("FlashInfer fa3, paged", flashinfer_paged("fa3"), "R6"),
    ("FlashInfer sampling", sampling, "R7"),
)


def main(checks: tuple[tuple[str, Callable[[], str], str], ...] = CHECKS) -> int:
    """Run all checks and return how many failed."""
    fallbacks = {risk.name: risk.fallback for risk in RISKS}
    num_failed = 0
    for name, check, risk in checks:
        began_s = time.monotonic()
        try:
            print(f"OK    {name}: {check()} ({time.monotonic() - began_s:.1f} s)", flush=True)
        except Exception as error:  # whatever a library raises: the next check still runs
            num_failed += 1
            hint = f"-> {risk}: {fallbacks[risk]}" if risk else "-> no usable GPU"
            print(f"FAIL  {name}: {type(error).__name__}: {str(error)[-400:]} {hint}", flush=True)
    return num_failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
