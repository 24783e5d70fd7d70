"""When layered decode graphs are made, what they cannot serve, and what of SGLang's they stand on."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.mem_cache.memory_pool import HybridReqToTokenPool
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.model_executor.runner.prefill_cuda_graph_runner import PrefillCudaGraphRunner
from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend

from sglang_layered.runner.decode_graphs import paths
from sglang_layered.runner.decode_graphs.paths import DecodePaths
from sglang_layered.upstream.graph_attention import GraphAttention
from sglang_layered.upstream.graphs import obstacle, slower_than_stock
from sglang_layered.upstream.releases import arguments


def stock_runner(**changes: Any) -> Any:
    stock: Any = DecodeCudaGraphRunner.__new__(DecodeCudaGraphRunner)
    plain = {"is_encoder_decoder": False, "require_gathered_buffer": False, "use_ngram_embedding": False}
    vars(stock).update(plain | {"backend": FullCudaGraphBackend.__new__(FullCudaGraphBackend)} | changes)
    return stock


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"backend": object()}, "not 'full'"),
        ({"is_encoder_decoder": True}, "encoder"),
        ({"require_gathered_buffer": True}, "--moe-a2a-backend"),
        ({"enable_lora": True}, "--enable-lora"),
        ({"pool": HybridReqToTokenPool.__new__(HybridReqToTokenPool)}, "recurrent"),
    ],
)
def test_what_layered_graphs_cannot_serve_is_said(changes: dict[str, Any], reason: str | None) -> None:
    args = SimpleNamespace(enable_lora=changes.pop("enable_lora", False))
    runner = SimpleNamespace(
        req_to_token_pool=changes.pop("pool", None),
        decode_cuda_graph_runner=stock_runner(**changes),
        canary_manager=None,
        server_args=args,
    )
    found = obstacle(runner)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("has_prefill_graphs", [False, True])
def test_what_only_stock_steps_have_is_known(is_compiled: bool, has_prefill_graphs: bool) -> None:
    graphs = PrefillCudaGraphRunner.__new__(PrefillCudaGraphRunner) if has_prefill_graphs else None
    flags = SimpleNamespace(enable_torch_compile=is_compiled, layered_graph_group_rows=None)
    found = slower_than_stock(SimpleNamespace(prefill_cuda_graph_runner=graphs, server_args=flags))
    assert list(found.values()) == [has_prefill_graphs, is_compiled]
    assert any("--enable-torch-compile" in sentence for sentence in found)
    flags.layered_graph_group_rows = [512]
    found = slower_than_stock(SimpleNamespace(prefill_cuda_graph_runner=graphs, server_args=flags))
    assert list(found.values()) == [False, is_compiled]


def test_new_stock_graphs_bring_new_layered_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(paths, "make_decode_graphs", lambda runner, calls: made.append(runner))
    model_runner = SimpleNamespace(decode_cuda_graph_runner=object())
    chosen = DecodePaths(model_runner, None)
    assert len(made) == 1
    model_runner.decode_cuda_graph_runner = object()
    chosen.renew()
    assert len(made) == 2 and chosen.stock is model_runner.decode_cuda_graph_runner


class Called:
    """An attention backend that only notes how it is called."""

    prefill_attention_backend_str = decode_attention_backend_str = "triton"

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, *args, *kwargs.items()))


def test_attention_of_the_graphs_leaves_the_stock_backend_alone() -> None:
    stock, own, slots_planned = Called(), Called(), []
    model_runner = SimpleNamespace(
        attn_backend=stock,
        _get_attention_backend=lambda: own,
        kv_index_translator=SimpleNamespace(bind_runner_slots=slots_planned.append),
    )
    attention = GraphAttention(model_runner, 64)
    few, many = (SimpleNamespace(batch_size=size) for size in (2, 4))
    own.forward_metadata = "plan of four"
    attention.plan_capture(many)
    own.forward_metadata = "plan of two"
    attention.plan_capture(few)
    attention.record(few)
    attention.plan(many, "view")
    attention.after_warmup()
    assert stock.calls == [] and attention.backend is own
    assert attention.planned(many) == (own, many) and own.forward_metadata == "plan of four"
    del own.forward_metadata
    attention.plan_capture(few)
    assert attention.planned(few) is None, "a backend around others has no plan of its own"
    assert slots_planned == ([] if arguments.IS_ONE_CLASS else [many, few, few])
    assert own.calls[:-1] == [
        ("init_cuda_graph_state", 64, 64),
        ("init_forward_metadata_out_graph", many, ("in_capture", True)),
        ("init_forward_metadata_out_graph", few, ("in_capture", True)),
        ("init_forward_metadata_in_graph", few),
        ("init_forward_metadata_out_graph", "view"),
        ("on_after_cuda_graph_warmup",),
    ]


def test_sglang_still_has_what_the_recorder_uses() -> None:
    """The capture stream of the stock runner, and the hook of its graph backend."""
    assert "self.stream = graph_capture_context.stream" in inspect.getsource(DecodeCudaGraphRunner)
    assert "post_warmup_hook" in inspect.signature(FullCudaGraphBackend.capture_one).parameters
    assert list(inspect.signature(FullCudaGraphBackend.replay).parameters)[1:3] == [
        "shape_key",
        "static_forward_batch",
    ]
