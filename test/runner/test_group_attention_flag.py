"""--layered-group-attention: pair and POD give the tokens of SGLang's backend; what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from flashinfer_emulation import (
    EmulatedBatchPod,
    EmulatedDecode,
    EmulatedPod,
    EmulatedPrefill,
    EmulatedWrappers,
)
from sglang.srt.layers.radix_attention import RadixAttention
from torch import nn

from harness import SteppedScheduler
from prompts import alone, prompt
from sglang_layered.errors import UnsupportedError
from sglang_layered.runner.flashinfer_group import (
    FlashInferGroupAttention,
    attention_shapes,
    make_group_attention,
)
from sglang_layered.upstream.runner import HybridAttention

pytestmark = pytest.mark.same_without_overlap(
    "what a step's attention computes, whenever its results are processed"
)


class Emulation:
    """The shared scheduler with group attention on emulated wrappers."""

    def __init__(self, stepped: SteppedScheduler, kind: str) -> None:
        self.kind = kind
        self.wrappers = EmulatedWrappers()
        self.runner = stepped.loop._execution._runner
        model_runner = stepped.scheduler.tp_worker.model_runner
        settings = SimpleNamespace(layered_group_attention=kind)
        facade = SimpleNamespace(**{name: getattr(model_runner, name) for name in USED}, server_args=settings)
        self.attention = make_group_attention(facade, self.runner._prompt_backend, self.wrappers)


KINDS = (EmulatedPrefill, EmulatedDecode, EmulatedPod, EmulatedBatchPod)
USED = ("model", "page_size", "dtype", "attn_backend", "req_to_token_pool", "token_to_kv_pool")


@pytest.fixture(params=["pair", "pod"])
def emulation(stepped: SteppedScheduler, request: pytest.FixtureRequest) -> Iterator[Emulation]:
    made = Emulation(stepped, request.param)
    stock, made.runner._attention = made.runner._attention, made.attention
    yield made
    made.runner._attention = stock


def test_auto_is_the_two_backends(stepped: SteppedScheduler) -> None:
    assert type(stepped.loop._execution._runner._attention) is HybridAttention
    assert type(Emulation(stepped, "auto").attention) is HybridAttention
    assert type(Emulation(stepped, "pod").attention) is FlashInferGroupAttention


def test_tokens_are_those_of_the_backend(stepped: SteppedScheduler, emulation: Emulation) -> None:
    shared = prompt(150, 901)
    tokens = [shared + prompt(80, 902), prompt(300, 903), prompt(40, 904), shared + prompt(5, 905)]
    expected = [alone(stepped, each, 8) for each in tokens]
    company = [stepped.send(prompt(20 + seed, 910 + seed), 60) for seed in range(3)]
    stepped.finish(stepped.send(shared, 1))
    first = stepped.send(tokens[0], 8)
    outputs = stepped.finish(first)
    assert stepped.reqs[first].cached_tokens >= 149
    together = [stepped.send(each, 8) for each in tokens[1:]]
    outputs += stepped.finish(*together)
    assert outputs == expected
    stepped.finish(*company)
    counts = {kind: emulation.wrappers.count(kind) for kind in KINDS}
    if emulation.kind == "pair":
        assert 0 < counts[EmulatedPrefill][0] < counts[EmulatedDecode][0]
    else:
        assert counts[EmulatedPod][0] > 0
        assert counts[EmulatedBatchPod][0] > 0
    assert all(runs % stepped.num_layers == 0 for _, runs in counts.values())


def test_arguments_that_it_does_not_know_are_an_error(
    stepped: SteppedScheduler, emulation: Emulation
) -> None:
    rows = torch.zeros(2, 8)
    with pytest.raises(NotImplementedError, match="sinks"):
        emulation.attention.forward(rows, rows, rows, None, None, sinks=rows)


class Layers(nn.Module):
    def __init__(self, *layers: RadixAttention) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


def layer(index: int, **changes: object) -> RadixAttention:
    plain: dict = {"num_heads": 8, "head_dim": 64, "scaling": 0.125, "num_kv_heads": 2}
    return RadixAttention(**(plain | changes), layer_id=index)


def test_there_is_one_shape_for_each_sliding_window() -> None:
    model = Layers(layer(0), layer(1, sliding_window_size=127), layer(2), layer(3, sliding_window_size=127))
    shapes = attention_shapes(model, 16, torch.bfloat16)
    assert {shape.window_left for shape in shapes} == {-1, 127}
    assert {(shape.num_q_heads, shape.num_kv_heads, shape.page_size) for shape in shapes} == {(8, 2, 16)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"v_head_dim": 32}, "layer 1 needs more than causal attention"),
        ({"is_cross_attention": True}, "layer 1 needs more than causal attention"),
        ({"num_kv_heads": 1}, "2 attention layers are not alike"),
        ({"scaling": 0.5}, "2 attention layers are not alike"),
    ],
)
def test_layers_that_the_kernels_cannot_serve_are_refused(changes: dict, reason: str) -> None:
    runner = SimpleNamespace(
        server_args=SimpleNamespace(layered_group_attention="pair"),
        model=Layers(layer(0), layer(1, **changes)),
        attn_backend=None,
        page_size=1,
        dtype=torch.bfloat16,
    )
    refused = "--layered-group-attention pair cannot serve Layers"
    with pytest.raises(
        UnsupportedError, match=f"{refused}: .*{reason}.*; use --layered-group-attention backends"
    ):
        make_group_attention(runner, None, EmulatedWrappers())
