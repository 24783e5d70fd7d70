"""Times our attention for CPUs beside SGLang's `torch_native`, layer by layer, in turns; see --help."""

from __future__ import annotations

import os

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType

from sglang_layered.upstream.cpu_attention import CpuAttention


class Shape(NamedTuple):
    """Heads, heads of keys and values, size of a head."""

    heads: int
    kv_heads: int
    size: int


class Load(NamedTuple):
    """Rows of each request and the tokens before them; `is_decode`: as a decode batch."""

    rows: tuple[int, ...]
    past: tuple[int, ...]
    is_decode: bool = False

    def expected(self) -> float:
        """How many times the pairs of rows and keys `torch_native` computes: all rows of each sequence."""
        if self.is_decode:
            return 1.0
        needed = sum(rows * past + rows * rows / 2 for rows, past in zip(self.rows, self.past, strict=True))
        return sum((rows + past) ** 2 / 2 for rows, past in zip(self.rows, self.past, strict=True)) / needed


SHAPES = {"demo (48 heads of 64)": Shape(48, 48, 64), "grouped (32 on 8 of 64)": Shape(32, 8, 64)}
LOADS = {
    "whole prompt of 2048": Load((2048,), (0,)),
    "chunk of 256 behind 768": Load((256,), (768,)),
    "chunk of 256 behind 1792": Load((256,), (1792,)),
    "the same with 4 decode rows of 1280": Load((256, 1, 1, 1, 1), (1792, 1280, 1280, 1280, 1280)),
    "4 decodes of 1280": Load((1,) * 4, (1280,) * 4, is_decode=True),
}


def batch_of(load: Load, runner: Any) -> SimpleNamespace:
    """Prompts lie in a run each; the last 64 tokens before a decode row every fourth slot, as if decoded."""
    table, start = runner.req_to_token_pool.req_to_token, 1
    for request, (rows, past) in enumerate(zip(load.rows, load.past, strict=True)):
        table[request, : past + rows] = torch.arange(start, start + past + rows, dtype=torch.int32)
        start += past + rows
        if rows == 1:
            table[request, past - 64 : past + 1] = start + request + 4 * torch.arange(65, dtype=torch.int32)
            start += 0 if request + 1 < len(load.rows) else 300
    lengths = torch.tensor([rows + past for rows, past in zip(load.rows, load.past, strict=True)])
    mode = SimpleNamespace(is_decode_or_idle=lambda: load.is_decode, is_target_verify=lambda: False)
    return SimpleNamespace(
        seq_lens=lengths,
        req_pool_indices=torch.arange(len(lengths)),
        extend_prefix_lens=torch.tensor(load.past),
        extend_seq_lens=torch.tensor(load.rows),
        forward_mode=mode,
        encoder_lens=None,
        out_cache_loc=None,
    )


def runner_of(shape: Shape, dtype: torch.dtype) -> SimpleNamespace:
    keys, values = (torch.randn(12_000, shape.kv_heads, shape.size).to(dtype) for _ in range(2))
    pool = SimpleNamespace(get_key_buffer=lambda layer: keys, get_value_buffer=lambda layer: values)
    table = SimpleNamespace(req_to_token=torch.zeros(8, 4096, dtype=torch.int32))
    return SimpleNamespace(device="cpu", dtype=dtype, req_to_token_pool=table, token_to_kv_pool=pool)


def layer_of(shape: Shape) -> SimpleNamespace:
    return SimpleNamespace(
        tp_q_head_num=shape.heads,
        tp_k_head_num=shape.kv_heads,
        tp_v_head_num=shape.kv_heads,
        qk_head_dim=shape.size,
        v_head_dim=shape.size,
        scaling=shape.size**-0.5,
        logit_cap=0.0,
        sliding_window_size=-1,
        layer_id=0,
        is_cross_attention=False,
        attn_type=AttentionType.DECODER,
    )


def compare(shape: Shape, load: Load, dtype: torch.dtype, turns: int) -> dict[str, float]:
    """Medians of the turns in ms, the ratio of each pair's median, the largest difference of an output."""
    runner, layer = runner_of(shape, dtype), layer_of(shape)
    batch, query = batch_of(load, runner), torch.randn(sum(load.rows), shape.heads * shape.size).to(dtype)

    def forward(backend: Any) -> torch.Tensor:
        backend.init_forward_metadata(batch)
        run: Callable[..., torch.Tensor] = (
            backend.forward_decode if load.is_decode else backend.forward_extend
        )
        return run(query, None, None, layer, batch)

    backends = [TorchNativeAttnBackend(runner), CpuAttention(runner)]
    stock, ours = (forward(backend) for backend in backends)
    times: list[tuple[float, ...]] = []
    for _ in range(turns):
        pair = []
        for backend in backends:
            start_s = time.perf_counter()
            forward(backend)
            pair.append(time.perf_counter() - start_s)
        times.append(tuple(pair))
    return {
        "torch_native_ms": round(1e3 * statistics.median(stock_s for stock_s, _ in times), 2),
        "ours_ms": round(1e3 * statistics.median(ours_s for _, ours_s in times), 2),
        "ratio": round(statistics.median(stock_s / ours_s for stock_s, ours_s in times), 2),
        "expected": round(load.expected(), 2),
        "difference": float((stock.double() - ours.double()).abs().max()),
    }


@click.command()
@click.option("--turns", default=11, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), multiple=True)
@torch.inference_mode()
def main(turns: int, dtype: tuple[str, ...]) -> None:
    """One line a case; `expected` is how many times the work torch_native does, by the count of pairs."""
    torch.manual_seed(0)
    for name in dtype or ("float32", "bfloat16"):
        for shape_name, shape in SHAPES.items():
            for load_name, load in LOADS.items():
                found = compare(shape, load, getattr(torch, name), turns)
                click.echo(json.dumps({"dtype": name, "shape": shape_name, "load": load_name, **found}))


if __name__ == "__main__":
    main()
