"""Compiles the Triton kernels for Hopper, which needs no GPU; prints the size of each as JSON."""

from __future__ import annotations

import json

import triton
from sglang_layered_kernels.expert_traffic import triton_kernel as kernels
from triton.backends.compiler import GPUTarget

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {"tokens_ptr": "*i64", "totals_ptr": "*i64", "scratch_ptr": "*i32"}
SIZES = {"num_ids": "i32", "row_stride": "i32", "column_stride": "i32"}


def compiled_bytes(kernel: object, num_experts: int, ids: str, rows: str) -> int:
    """Size of the machine code of one variant."""
    types = {**POINTERS, **SIZES, "ids_ptr": ids, "split": rows}
    constants = {
        "TOP_K": 8,
        "NUM_EXPERTS": num_experts,
        "NUM_BINS": kernels.num_bins(num_experts),
        "BLOCK": kernels.BLOCK,
        "SPLIT_ON_DEVICE": rows.startswith("*"),
    }
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    source = triton.compiler.ASTSource(kernel, signature, constants)
    return len(triton.compile(source, target=HOPPER).asm["cubin"])


def main() -> None:
    sizes = {
        f"{kernel.__name__} {num_experts} {ids} {rows}": compiled_bytes(kernel, num_experts, ids, rows)
        for kernel in (kernels.count_small, kernels.gather_blocks, kernels.fold_scratch)
        for num_experts, ids, rows in [(8, "*i32", "i32"), (128, "*i32", "*i64"), (1024, "*i64", "*i32")]
    }
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
