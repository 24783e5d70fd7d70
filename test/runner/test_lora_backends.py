"""Which adapter each row gets, as SGLang's LoRA backends prepare it on the host; their kernels need a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lora_models import leave_memory_unpinned
from sglang.srt.lora.backend import chunked_backend
from sglang.srt.lora.backend.base_backend import BaseLoRABackend
from sglang.srt.lora.backend.lora_registry import get_backend_from_name
from sglang.srt.lora.lora_manager import LoRAManager
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

from sglang_layered.runner.rows import hybrid_batch
from sglang_layered.upstream.lora import Adapters
from sglang_layered.upstream.releases import forwarding

SLOTS = {None: 0, "a": 1, "b": 2, "c": 3}
PROMPTS = {"lens": [70, 3, 300], "adapters": ["b", None, "a"]}
DECODE = ["c", "b", None, "c"]


@pytest.fixture(params=["triton", "csgmv", "torch_native"])
def manager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """SGLang's manager, with all adapters in its pool and buffers that only a prefill graph may fill."""
    leave_memory_unpinned(monkeypatch.setattr)
    args = SimpleNamespace(max_lora_chunk_size=16)
    monkeypatch.setattr(chunked_backend, "get_lora", lambda: args, raising=False)  # asked by 0.5.23
    backend = get_backend_from_name(request.param)(
        max_loras_per_batch=len(SLOTS), device=torch.device("cpu"), server_args=args
    )
    backend.is_moe_lora = True
    backend.prefill_cuda_graph_max_bs, backend.prefill_cuda_graph_max_tokens = 64, 8192
    manager: Any = LoRAManager.__new__(LoRAManager)
    manager.lora_backend, manager.max_loras_per_batch = backend, len(SLOTS)
    manager.enable_dp_attention = manager.attn_dp_enabled = False
    manager.memory_pool = SimpleNamespace(uid_to_buffer_id=SLOTS, get_buffer_id=SLOTS.__getitem__)
    adapter = SimpleNamespace(config=SimpleNamespace(r=8), scaling=2.0)
    manager.loras = {name: adapter for name in SLOTS if name is not None}
    return manager


@pytest.fixture
def adapters(manager: Any) -> Adapters:
    return Adapters(manager)


def batch(mode: ForwardMode, lens: list[int], names: list[Any], **fields: Any) -> ForwardBatch:
    num_rows, num_reqs = sum(lens), len(lens)
    rows = torch.arange(num_rows)
    per_request = torch.arange(num_reqs)
    return ForwardBatch(
        forward_mode=mode,
        batch_size=num_reqs,
        input_ids=rows,
        positions=rows,
        req_pool_indices=per_request,
        seq_lens=per_request,
        seq_lens_cpu=per_request,
        seq_lens_sum=num_rows,
        out_cache_loc=rows,
        lora_ids=names,
        **dict.fromkeys(forwarding.COUNTS, num_rows),
        **fields,
    )


def prepared(adapters: Adapters, manager: Any, rows: ForwardBatch) -> ForwardBatch:
    """As a launch prepares it."""
    with adapters.kept_apart():
        manager.prepare_lora_batch(rows)
    adapters.note(rows)
    return rows


def slots(backend: BaseLoRABackend, num_rows: int) -> list[int]:
    """The pool slot that each row's adapter is in."""
    info: Any = backend.batch_info
    ends = info.seg_indptr[: info.num_segments + 1]
    by_segment = info.weight_indices[: info.num_segments].repeat_interleave(ends.diff())
    assert len(by_segment) == num_rows
    if info.permutation is None:
        return by_segment.tolist()
    by_row = torch.empty_like(by_segment)
    by_row[info.permutation.long()] = by_segment
    return by_row.tolist()


def expected(names: list[Any], lens: list[int]) -> list[int]:
    return [SLOTS[name] for name, length in zip(names, lens, strict=True) for _ in range(length)]


def test_joined_rows_have_the_adapters_of_their_requests(adapters: Adapters, manager: Any) -> None:
    lens = PROMPTS["lens"]
    prompt = batch(
        ForwardMode.EXTEND,
        lens,
        PROMPTS["adapters"],
        extend_num_tokens=sum(lens),
        extend_seq_lens=torch.tensor(lens, dtype=torch.int32),
        extend_seq_lens_cpu=lens,
    )
    prompt = prepared(adapters, manager, prompt)
    ones = [1] * len(DECODE)
    decode = prepared(adapters, manager, batch(ForwardMode.DECODE, ones, DECODE))
    rows = hybrid_batch(prompt, decode)
    adapters.join(rows, prompt, decode)
    of_prompt, of_decode = expected(PROMPTS["adapters"], lens), expected(DECODE, ones)
    for kind, wanted in ((rows, of_prompt + of_decode), (decode, of_decode), (prompt, of_prompt)):
        adapters.use(kind)
        assert slots(manager.lora_backend, len(wanted)) == wanted
        of_experts = manager.lora_backend.batch_info.moe_lora_info.token_lora_mapping
        assert of_experts.clamp(min=0).tolist() == wanted  # without an adapter it is -1 in 0.5.23
    assert manager.lora_backend.prefill_cuda_graph_max_bs == 64
