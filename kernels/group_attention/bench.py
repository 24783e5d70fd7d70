"""Benchmark cases of group attention: pair, POD, and the two launches of the pair alone.

On a GPU the shapes are Qwen3-30B-A3B's; without one a small float32 run of the reference shows that the
command works and says nothing about speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sglang_layered_kernels.bench_case import BenchCase
from sglang_layered_kernels.group_attention.flashinfer_pair import PagedPairAttention
from sglang_layered_kernels.group_attention.flashinfer_pod import PodAttention
from sglang_layered_kernels.group_attention.plan import AttentionShape, PageTables, page_tables
from sglang_layered_kernels.group_attention.reference import group_attention_reference
from sglang_layered_kernels.group_attention.wrappers import FlashInferWrappers

NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 4, 128
PROMPT_TOKENS = (2048, 8192)
DECODE_ROWS = (16, 64)
CONTEXT_TOKENS = (1024, 4096)  # decode rows' contexts, evenly between the two
WORKSPACE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows `[prompt; decode]` on a pool whose slots are dealt at random, pages of one token."""

    shape: AttentionShape
    query_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    q: torch.Tensor
    kv_cache: tuple[torch.Tensor, torch.Tensor]
    req_to_token: torch.Tensor

    def tables(self, first: int, end: int) -> PageTables:
        """Page tables of the requests [first, end)."""
        rows = torch.arange(first, end, device=self.q.device)
        queries, keys = self.query_lens[first:end], self.kv_lens[first:end]
        return page_tables(self.req_to_token, rows, queries, keys, page_size=self.shape.page_size)

    def num_bytes(self, first: int, end: int) -> int:
        """Least traffic of the requests [first, end): queries and outputs, keys and values once."""
        query_elements = 2 * sum(self.query_lens[first:end]) * self.shape.num_q_heads
        key_elements = 2 * sum(self.kv_lens[first:end]) * self.shape.num_kv_heads
        num_elements = (query_elements + key_elements) * self.shape.head_dim
        return num_elements * int(self.q.element_size())

    def num_flops(self, first: int, end: int) -> int:
        """Two products of head_dim for each pair of a query and a key that it sees."""
        pairs = sum(
            query * key - query * (query - 1) // 2
            for query, key in zip(self.query_lens[first:end], self.kv_lens[first:end], strict=True)
        )
        return 4 * pairs * self.shape.num_q_heads * self.shape.head_dim


def make_workload(
    device: str, dtype: torch.dtype, prompt_tokens: int, contexts: Sequence[int], heads: tuple[int, int, int]
) -> Workload:
    """One prompt without a prefix and one decode row for each context; `heads`: query, KV, head_dim."""
    num_q_heads, num_kv_heads, head_dim = heads
    generator = torch.Generator(device).manual_seed(1)
    query_lens = (prompt_tokens, *(1 for _ in contexts))
    kv_lens = (prompt_tokens, *contexts)
    slots = torch.randperm(sum(kv_lens), device=device, generator=generator, dtype=torch.int32)
    table = torch.zeros((len(kv_lens), max(kv_lens)), dtype=torch.int32, device=device)
    for row, mine in enumerate(slots.split(list(kv_lens))):
        table[row, : len(mine)] = mine

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=device, dtype=dtype, generator=generator)

    return Workload(
        shape=AttentionShape(num_q_heads, num_kv_heads, head_dim, 1, head_dim**-0.5, dtype),
        query_lens=query_lens,
        kv_lens=kv_lens,
        q=normal(sum(query_lens), num_q_heads, head_dim),
        kv_cache=(
            normal(len(slots), num_kv_heads, head_dim),
            normal(len(slots), num_kv_heads, head_dim),
        ),
        req_to_token=table,
    )


def cases(device: str) -> list[BenchCase]:
    """Cases for `sglang-layered bench kernels` on "cpu" or "cuda"."""
    if not device.startswith("cuda"):
        return [_reference_case(make_workload(device, torch.float32, 32, (40, 50), (4, 2, 64)))]
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrappers = FlashInferWrappers(workspace, use_tensor_cores=True)
    found = []
    for prompt_tokens, num_rows in itertools.product(PROMPT_TOKENS, DECODE_ROWS):
        contexts = torch.linspace(*CONTEXT_TOKENS, num_rows).long().tolist()
        heads = (NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM)
        work = make_workload(device, torch.bfloat16, prompt_tokens, contexts, heads)
        found += _flashinfer_cases(work, wrappers)
    return found


def _flashinfer_cases(work: Workload, wrappers: FlashInferWrappers) -> list[BenchCase]:
    num_requests = len(work.query_lens)
    prompt, decode = work.tables(0, 1), work.tables(1, num_requests)
    pair, pod = PagedPairAttention(work.shape, wrappers), PodAttention(work.shape, wrappers)
    pair.plan(prompt, decode)
    pod.plan(prompt, decode)
    cut, (keys, values) = prompt.num_rows, work.kv_cache
    paged = (work.shape.paged(keys), work.shape.paged(values))
    return [
        _case("pair", work, (0, num_requests), lambda: pair.run(work.q, work.kv_cache)),
        _case("pod", work, (0, num_requests), lambda: pod.run(work.q, work.kv_cache)),
        _case("prefill alone", work, (0, 1), lambda: pair.prefill.run(q=work.q[:cut], paged_kv_cache=paged)),
        _case(
            "decode alone",
            work,
            (1, num_requests),
            lambda: pair.decode.run(q=work.q[cut:], paged_kv_cache=paged),
        ),
    ]


def _reference_case(work: Workload) -> BenchCase:
    def run() -> torch.Tensor:
        rows = range(len(work.query_lens))
        lengths = (rows, work.query_lens, work.kv_lens)
        return group_attention_reference(
            work.q, work.kv_cache, work.req_to_token, *lengths, scale=work.shape.scale
        )

    return _case("reference", work, (0, len(work.query_lens)), run)


def _case(name: str, work: Workload, requests: tuple[int, int], run: Callable[[], object]) -> BenchCase:
    contexts = work.kv_lens[1:]
    return BenchCase(
        name=f"group_attention {name}",
        shape={
            "prompt_tokens": work.kv_lens[0],
            "decode_rows": len(contexts),
            "contexts": f"{min(contexts)}..{max(contexts)}",
            "heads": f"{work.shape.num_q_heads}/{work.shape.num_kv_heads} x {work.shape.head_dim}",
        },
        run=run,
        num_bytes=work.num_bytes(*requests),
        num_flops=work.num_flops(*requests),
    )
