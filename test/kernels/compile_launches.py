"""Compiles, without a device, the Triton kernels that a layered step launches; prints their sizes as JSON.

Usage: compile_launches.py h100|b200. The callers are SGLang's own and ours, with the shapes of Qwen3-30B-A3B
in bfloat16: signatures, strides and constants are those of a launch. A launch compiles for the device and
stops there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fake_device import DEVICES, FakeDevice, pretend

ROWS, PROMPT_ROWS, LENGTH, POOL, PAGE_SIZE = 64, 512, 1024, 4096, 64
HIDDEN, EXPERTS, TOP_K, EXPERT_SIZE = 2048, 128, 8, 768
HEADS, KV_HEADS, HEAD_SIZE, MAX_SPLITS, NUM_SMS = 32, 4, 128, 8, 132
COMPILED: dict[str, int] = {}  # bytes of machine code by kernel and variant


class NoDevice:
    """Stands where Triton's driver stands: knows the target and nothing else."""

    def __init__(self, device: FakeDevice) -> None:
        major, minor = device.capability
        self._target = GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(device: FakeDevice) -> None:
    """From here on a launch compiles its kernel and notes it."""
    triton.runtime.driver.set_active(NoDevice(device))
    run = JITFunction.run

    def compile_and_note(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        name = f"{self.fn.__module__}:{self.fn.__name__}"
        number = sum(known.startswith(f"{name} ") for known in COMPILED)
        COMPILED[f"{name} {number}"] = len(compiled.asm["cubin"])
        return compiled

    JITFunction.run = compile_and_note


def ints(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def values(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Without memory: an address that divides by 16, as the allocator's do."""
    return torch.empty(shape, dtype=dtype, device="meta")


def count_experts() -> None:
    """Ours: few ids in one launch, many by blocks; rows told apart on the host and in a graph."""
    from sglang_layered_kernels.expert_traffic import ExpertTrafficCounter

    for num_experts, dtype, split in (
        (8, torch.int32, 3),
        (EXPERTS, torch.int32, ints(2, dtype=torch.int64)),
        (1024, torch.int64, ints(2)),
    ):
        counter = ExpertTrafficCounter(1, num_experts, "cpu", use_triton=True)
        for num_rows in (4, 4096):
            counter.record(0, ints(num_rows, TOP_K, dtype=dtype), split)


def tiles(num_rows: int) -> dict[str, int]:
    """The tiles of SGLang's grouped matrix product: as tuned for Hopper, else its default."""
    if triton.runtime.driver.active.get_current_target().arch == 90:
        tuned = max(
            Path(str(files("sglang"))).rglob(f"E={EXPERTS},N={EXPERT_SIZE},device_name=NVIDIA_H200.json")
        )
        sizes: dict[str, dict[str, int]] = json.loads(tuned.read_text())
        return sizes[str(num_rows)]
    shape = (16, 32, 64, 1) if num_rows <= EXPERTS else (64, 64, 32, 8)
    return dict(zip(("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M"), shape, strict=True))


def run_experts() -> None:
    """SGLang's grouped matrix products, into the experts and out of them, of few rows and of many."""
    for num_rows in (ROWS, 4096):
        for num_in, num_out, top_k in ((HIDDEN, 2 * EXPERT_SIZE, TOP_K), (EXPERT_SIZE, HIDDEN, 1)):
            multiply_by_experts(num_rows, num_in, num_out, top_k)


def multiply_by_experts(num_rows: int, num_in: int, num_out: int, top_k: int) -> None:
    from sglang.kernels.ops.moe.fused_moe_triton_kernels import invoke_fused_moe_kernel

    invoke_fused_moe_kernel(
        A=meta(num_rows * TOP_K // top_k, num_in),
        B=meta(EXPERTS, num_out, num_in),
        bias=None,
        C=meta(num_rows, TOP_K, num_out),
        A_scale=None,
        B_scale=None,
        B_zp=None,
        topk_weights=meta(num_rows, TOP_K, dtype=torch.float32),
        topk_ids=ints(num_rows, TOP_K),
        sorted_token_ids=ints(num_rows * TOP_K),
        expert_ids=ints(num_rows),
        num_tokens_post_padded=ints(1),
        mul_routed_weight=top_k == 1,
        top_k=top_k,
        config=tiles(num_rows),
        compute_type=tl.bfloat16,
        use_fp8_w8a8=False,
        use_int8_w8a8=False,
        use_int8_w8a16=False,
        use_int4_w4a16=False,
        per_channel_quant=False,
    )


def attend_decode() -> None:
    """SGLang's Triton attention of decode rows: grouped heads, and one query head a KV head."""
    from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd

    for kv_heads in (KV_HEADS, HEADS):
        pool = values(POOL, kv_heads, HEAD_SIZE)
        logits = values(ROWS, HEADS, MAX_SPLITS, HEAD_SIZE, dtype=torch.float32)
        decode_attention_fwd(
            values(ROWS, HEADS, HEAD_SIZE),
            pool,
            pool,
            values(ROWS, HEADS, HEAD_SIZE),
            ints(ROWS + 1),
            ints(POOL, dtype=torch.int64),
            logits,
            logits[..., 0].contiguous(),
            ints(ROWS),
            MAX_SPLITS,
            HEAD_SIZE**-0.5,
            1.0,
            1.0,
        )


def attend_prompt() -> None:
    """SGLang's Triton attention of prompt rows, whose prefix is in the pool."""
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd

    rows, pool = values(PROMPT_ROWS, KV_HEADS, HEAD_SIZE), values(POOL, KV_HEADS, HEAD_SIZE)
    for page_size in (1, PAGE_SIZE):
        extend_attention_fwd(
            values(PROMPT_ROWS, HEADS, HEAD_SIZE),
            rows,
            rows,
            values(PROMPT_ROWS, HEADS, HEAD_SIZE),
            pool,
            pool,
            ints(2),
            ints(2),
            ints(POOL, dtype=torch.int64),
            None,
            True,
            None,
            PROMPT_ROWS,
            1.0,
            1.0,
            HEAD_SIZE**-0.5,
            page_size=page_size,
        )


def join_latent_keys() -> None:
    """Latent attention (DeepSeek's sizes): a prompt's keys from their two parts."""
    from sglang.kernels.ops.kvcache.cache_ops import concat_and_cast_mha_k_triton

    keys, plain, rotated = values(ROWS, 16, 192), values(ROWS, 16, 128), values(ROWS, 1, 64)
    concat_and_cast_mha_k_triton(keys, plain, rotated)


def plan_attention() -> None:
    """What SGLang's attention backends launch to plan a batch."""
    from sglang.kernels.ops.attention.metadata import get_num_kv_splits_triton
    from sglang.kernels.ops.kvcache.kv_indices import create_flashinfer_kv_indices_triton

    lengths, requests = ints(ROWS, dtype=torch.int64), ints(ROWS, dtype=torch.int64)
    get_num_kv_splits_triton[(1,)](
        ints(ROWS), lengths, ROWS, 1, HEADS, KV_HEADS, MAX_SPLITS, NUM_SMS, MAX_NUM_SEQ=ROWS
    )
    table = ints(ROWS, LENGTH)
    for index_type in (torch.int32, torch.int64):
        create_flashinfer_kv_indices_triton[(ROWS,)](
            table, requests, lengths, ints(ROWS + 1), None, ints(POOL, dtype=index_type), table.stride(0)
        )


def plan_blackwell_attention() -> None:
    """What its default backend, trtllm_mha, launches to plan a batch, and decode rows of graphs."""
    from sglang.kernels.ops.kvcache.trtllm_mha_graph_metadata import update_trtllm_mha_graph_metadata
    from sglang.kernels.ops.kvcache.trtllm_mha_page_table import build_trtllm_mha_page_table

    lengths, requests = ints(ROWS, dtype=torch.int64), ints(ROWS, dtype=torch.int64)
    tokens, pages = ints(ROWS, LENGTH), ints(ROWS, LENGTH // PAGE_SIZE)
    build_trtllm_mha_page_table(tokens, requests, ints(ROWS), pages, PAGE_SIZE)
    update_trtllm_mha_graph_metadata(
        req_pool_indices=requests,
        seq_lens=lengths,
        req_to_token=tokens,
        cache_seqlens=ints(ROWS),
        cu_seqlens_k=ints(ROWS + 1),
        page_table=pages,
        bs=ROWS,
        seqlen_offset=0,
        max_seq_pages=pages.shape[1],
        page_size=PAGE_SIZE,
    )


def place_rows() -> None:
    """What SGLang launches to give rows their slots and positions."""
    from sglang.kernels.ops.attention.position import compute_position_triton
    from sglang.kernels.ops.memory.allocator import alloc_decode_kernel, alloc_extend_kernel
    from sglang.kernels.ops.memory.common import write_req_to_token_pool_triton

    long = torch.int64
    lengths, slots, pages = ints(4, dtype=long), ints(PROMPT_ROWS, dtype=long), ints(POOL, dtype=long)
    compute_position_triton(ints(4), ints(4), PROMPT_ROWS)
    write_req_to_token_pool_triton[(4,)](
        ints(ROWS, LENGTH), lengths, ints(4, dtype=torch.int64), lengths, lengths, lengths, slots, LENGTH
    )
    alloc_extend_kernel[(4,)](lengths, lengths, lengths, pages, slots, 4, PAGE_SIZE)
    alloc_decode_kernel[(4,)](lengths, lengths, pages, slots, 4, PAGE_SIZE)


LAUNCHES: tuple[Callable[[], None], ...] = (
    count_experts,
    run_experts,
    attend_decode,
    attend_prompt,
    join_latent_keys,
    plan_attention,
    plan_blackwell_attention,
    place_rows,
)


def main(name: str) -> None:
    pretend(DEVICES[name])
    compile_only(DEVICES[name])
    for launch in LAUNCHES:
        launch()
    print(json.dumps(COMPILED))


if __name__ == "__main__":
    main(sys.argv[1])
