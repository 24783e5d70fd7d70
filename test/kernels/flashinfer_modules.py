"""FlashInfer's modules that the attention of a layered step would compile on a GPU, found without one.

The wrappers are FlashInfer's own, planned and run by our kernels and as SGLang's flashinfer backend does it.
Where FlashInfer would compile a module and load it, the module is noted. Import before sglang and flashinfer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import torch

from fake_device import FakeDevice, pretend

HEADS, KV_HEADS, PAGE_SIZE, POOL = 32, 4, 16, 512
PROMPT_ROWS, ROWS, LENGTH = 64, 4, 80


def modules_of(device: FakeDevice, head_dim: int) -> list[Any]:
    """The JitSpec of each module, ours first."""
    major, minor = device.capability
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = f"{major}.{minor}a"  # asked for when flashinfer is imported
    pretend(device)
    noted = _note_modules(device)
    for plans in (_pair, _pod, _stock):
        plans(head_dim)
    return list({spec.name: spec for spec in noted}.values())


def _note_modules(device: FakeDevice) -> list[Any]:
    import flashinfer.utils
    from flashinfer.jit import core

    noted: list[Any] = []

    def note(spec: Any) -> MagicMock:
        noted.append(spec)
        return MagicMock()  # a module whose every function may be called

    core.JitSpec.build_and_load = note
    flashinfer.utils.get_compute_capability = lambda asked: (
        device.capability
    )  # the real one refuses tensors of the CPU
    empty: Callable[..., torch.Tensor] = torch.empty
    torch.empty = lambda *args, pin_memory=False, **more: empty(*args, **more)  # pinning needs a driver
    return noted


def _pair(head_dim: int) -> None:
    """`--layered-group-attention pair`; SGLang's own paged prefill and decode plan the same arguments."""
    from sglang_layered_kernels.group_attention import PagedPairAttention

    for kv_heads in (KV_HEADS, HEADS):  # decode rows by tensor cores, and without
        _step(PagedPairAttention, head_dim, kv_heads, (PROMPT_ROWS,))


def _pod(head_dim: int) -> None:
    """`--layered-group-attention pod`: one prompt, and two."""
    from sglang_layered_kernels.group_attention import PodAttention

    for prompts in ((PROMPT_ROWS,), (PROMPT_ROWS // 2, PROMPT_ROWS // 2)):
        _step(PodAttention, head_dim, KV_HEADS, prompts)


def _step(kernel: Any, head_dim: int, kv_heads: int, prompts: tuple[int, ...]) -> None:
    """Plan and run one layer of a step."""
    from sglang_layered_kernels.group_attention import AttentionShape, FlashInferWrappers, page_tables

    dtype = torch.bfloat16
    wrappers = FlashInferWrappers(_workspace(), use_tensor_cores=HEADS // kv_heads >= 4)  # SGLang's rule
    shape = AttentionShape(HEADS, kv_heads, head_dim, PAGE_SIZE, head_dim**-0.5, dtype)
    table = torch.arange(POOL, dtype=torch.int32).view(ROWS, -1)
    prompt, decode = (
        page_tables(table, torch.arange(len(lens)), lens, [LENGTH] * len(lens), page_size=PAGE_SIZE)
        for lens in (prompts, (1,) * ROWS)
    )
    attention = kernel(shape, wrappers)
    attention.plan(prompt, decode)
    pool = torch.zeros(POOL, kv_heads, head_dim, dtype=dtype)
    attention.run(torch.zeros(sum(prompts) + ROWS, HEADS, head_dim, dtype=dtype), (pool, pool))


def _stock(head_dim: int) -> None:
    """What else SGLang's flashinfer backend calls, or its sampler: a prompt's new keys, not paged; norms."""
    from flashinfer import BatchPrefillWithRaggedKVCacheWrapper
    from flashinfer.jit.norm import gen_norm_module
    from flashinfer.jit.sampling import gen_sampling_module

    backend = "auto" if torch.cuda.get_device_capability()[0] == 9 else "cutlass"
    ragged = BatchPrefillWithRaggedKVCacheWrapper(_workspace(), "NHD", backend=backend)
    bounds = torch.tensor([0, PROMPT_ROWS], dtype=torch.int32)
    ragged.plan(bounds, bounds, HEADS, KV_HEADS, head_dim, causal=True, q_data_type=torch.bfloat16)
    for module in (gen_norm_module, gen_sampling_module):
        module().build_and_load()


def _workspace() -> torch.Tensor:
    return torch.zeros(1 << 20, dtype=torch.uint8)
