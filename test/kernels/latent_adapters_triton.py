"""SGLang's Triton kernels of adapters of `kv_b_proj` beside their CPU reference.

Prints the worst relative differences. They run in Triton's interpreter: start it with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import torch
from sglang.kernels.ops.gemm import kv_b_lora_absorbed as stock
from sglang_layered_kernels.cpu import latent_adapters as ours

HEADS, KEYS, VALUES, LATENT, RANKS = 3, 24, 16, 40, 8
SEGMENTS, SLOTS = [1, 17, 5, 3], [2, 0, 1, 2]  # rows that share an adapter, and its place; slot 0 has none


def compared(*, is_sorted: bool) -> list[float]:
    """Of each function, on rows in order or found through a permutation."""
    generator = torch.Generator().manual_seed(5)
    num_rows = sum(SEGMENTS)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    info = SimpleNamespace(
        use_cuda_graph=False,
        bs=len(SEGMENTS),
        num_segments=len(SEGMENTS),
        max_len=max(SEGMENTS),
        seg_indptr=torch.tensor([0, *SEGMENTS], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        weight_indices=torch.tensor(SLOTS, dtype=torch.int32),
        lora_ranks=torch.tensor([0, 4, RANKS], dtype=torch.int32),
        scalings=torch.tensor([0.0, 2.0, 0.5]),
        permutation=torch.randperm(num_rows, generator=generator).to(torch.int32) if is_sorted else None,
    )
    down, up = made(3, RANKS, LATENT), made(3, HEADS * (KEYS + VALUES), RANKS)
    queries, outputs = made(num_rows, HEADS, KEYS), made(num_rows, HEADS, LATENT)
    into_latent, into_values = made(num_rows, HEADS, LATENT), made(num_rows, HEADS, VALUES)
    results = []
    for kernels in (stock, ours):
        halfway = kernels.step_a_q_fwd(queries, up, info, KEYS + VALUES)
        latent = kernels.step_b_q_fwd(halfway, down, info, into_latent.clone())
        reduced = kernels.step_a_v_fwd(outputs, down, info)
        values = kernels.step_b_v_fwd(reduced, up, info, into_values.clone(), KEYS, VALUES)
        results.append((latent, values))
    pairs = zip(*results, strict=True)
    return [float((one - other).abs().max() / one.abs().max()) for one, other in pairs]


if __name__ == "__main__":
    print(json.dumps([*compared(is_sorted=False), *compared(is_sorted=True)]))
