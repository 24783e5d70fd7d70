"""Bytes of a quantized expert: SGLang's own weights of a layer against checkpoints in the published layouts.

MXFP4, GPTQ and AWQ weights are made by SGLang's `create_weights`, those of FP8 blocks by hand in its
form. What follows loading is SGLang's own for MXFP4; the others run GPU kernels there, which keep sizes.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import quantized_checkpoints as checkpoints
from quantized_checkpoints import BLOCK, EXPERTS, GROUP, HIDDEN, INNER
from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.errors import UnsupportedError
from sglang_layered.models import layer_shapes
from sglang_layered.models.checkpoint_bytes import read_stored_layers
from sglang_layered.runner.expert_bytes import expert_bytes


def layer_of(method: Any, experts: int = EXPERTS, hidden: int = HIDDEN, inner: int = INNER) -> nn.Module:
    """What of FusedMoE a quantization method and the counter look at."""
    layer = nn.Module()
    layer.layer_id, layer.quant_method, layer.moe_tp_size = 0, method, 1
    layer.num_local_experts, layer.hidden_size = experts, hidden
    layer.intermediate_size_per_partition = inner
    layer.moe_runner_config = SimpleNamespace(is_gated=True)
    return layer


def mxfp4_layer(on_triton_kernels: bool, **sizes: int) -> nn.Module:
    from sglang.srt.layers.quantization.mxfp4 import Mxfp4MoEMethod

    method = Mxfp4MoEMethod.__new__(Mxfp4MoEMethod)  # its constructor asks the server for the backend
    method.use_marlin = method.use_deep_gemm = method.use_flashinfer = False
    method._fi_kernel, method.use_triton_kernels = None, on_triton_kernels
    layer = layer_of(method, **sizes)
    method.create_weights(
        layer,
        layer.num_local_experts,
        layer.hidden_size,
        layer.intermediate_size_per_partition,
        torch.bfloat16,
        with_bias=True,
    )
    method.process_weights_after_loading(layer)
    return layer


def test_mxfp4_on_triton_kernels_counts_the_weights_that_moved_into_the_method() -> None:
    layer, stored = mxfp4_layer(on_triton_kernels=True), checkpoints.expert_bytes(checkpoints.mxfp4())
    assert not hasattr(layer, "w13_weight")
    widened = 2 * (2 * INNER + HIDDEN)  # biases: bfloat16 in the file, float32 when served
    assert expert_bytes(layer) == stored + widened


def test_an_expert_of_gpt_oss_20b_is_13_megabytes() -> None:
    layer = mxfp4_layer(on_triton_kernels=True, experts=1, hidden=2880, inner=2880)
    assert expert_bytes(layer) / 1e6 == pytest.approx(13.25, abs=0.005)


def test_weights_that_went_where_nobody_knows_are_refused() -> None:
    layer = mxfp4_layer(on_triton_kernels=True)
    layer.quant_method = SimpleNamespace()
    with pytest.raises(UnsupportedError, match=r"layer 0's experts cannot be told .*w13: .*0\.25 bits"):
        expert_bytes(layer)


def test_two_sets_of_scales_are_refused() -> None:
    layer = scheme_layer("fp8")
    layer.w13_blockscale_swizzled = nn.Parameter(layer.w13_weight_scale_inv.clone(), requires_grad=False)
    with pytest.raises(UnsupportedError, match="several sets of scales"):
        expert_bytes(layer)


def scheme_layer(kind: str) -> nn.Module:
    """Weights as SGLang's method for GPUs registers them."""
    layer = layer_of(SimpleNamespace())
    if kind == "fp8":
        for name, out, inner in (("w13", 2 * INNER, HIDDEN), ("w2", HIDDEN, INNER)):
            weight = torch.zeros(EXPERTS, out, inner, dtype=torch.float8_e4m3fn)
            setattr(layer, f"{name}_weight", nn.Parameter(weight, requires_grad=False))
            scale = torch.zeros(EXPERTS, out // BLOCK, inner // BLOCK)
            setattr(layer, f"{name}_weight_scale_inv", nn.Parameter(scale, requires_grad=False))
        return layer
    from sglang.srt.layers.quantization.awq.schemes.awq_moe import AWQMoEScheme
    from sglang.srt.layers.quantization.gptq.schemes.gptq_moe import GPTQMarlinMoEScheme

    cls = GPTQMarlinMoEScheme if kind == "gptq" else AWQMoEScheme
    scheme = cls.__new__(cls)
    scheme.kernel = SimpleNamespace()
    scheme.quant_config = SimpleNamespace(group_size=GROUP, pack_factor=8, desc_act=True, weight_bits=4)
    scheme.create_weights(layer, EXPERTS, HIDDEN, INNER, torch.float16)
    return layer


def gptq_as_served() -> dict[str, torch.Tensor]:
    """SGLang keeps the packed zero points in the type of the scales, half as wide as in the file."""
    return {
        name: tensor.to(torch.float16) if name.endswith("qzeros") else tensor
        for name, tensor in checkpoints.gptq().items()
    }


@pytest.mark.parametrize(
    ("kind", "tensors", "without"),
    [
        ("fp8", checkpoints.fp8_block(), ()),
        ("gptq", gptq_as_served(), ("g_idx",)),
        ("awq", checkpoints.awq(), ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_experts_have_the_bytes_of_the_checkpoint(
    kind: str, tensors: dict[str, torch.Tensor], without: tuple[str, ...]
) -> None:
    assert expert_bytes(scheme_layer(kind)) == checkpoints.expert_bytes(tensors, *without)


@pytest.mark.parametrize("kind", ["mxfp4", "fp8_block", "gptq", "awq"])
def test_headers_of_a_checkpoint_tell_the_bytes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = getattr(checkpoints, kind)()
    attention = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8, dtype=torch.float32)}
    checkpoints.write(tmp_path, tensors | attention)
    [stored] = read_stored_layers(str(tmp_path)).values()
    wanted = EXPERTS * checkpoints.expert_bytes(tensors, "g_idx")
    assert (stored.experts.num_bytes, stored.experts.is_quantized) == (wanted, True)
    assert (stored.dense.num_bytes, stored.dense.is_quantized) == (256, False)
    plain = LayerShape(64, EXPERTS, 2, 3 * HIDDEN * INNER, param_bytes=2.0)
    monkeypatch.setattr(layer_shapes, "read_layer_shapes", lambda config, width: (plain,))
    config = SimpleNamespace(
        hf_text_config=None, dtype=torch.bfloat16, quantization=kind, model_path=str(tmp_path)
    )
    [shape] = layer_shapes.served_layer_shapes(config)
    assert shape.expert_bytes == pytest.approx(wanted)
    assert shape.bytes_read(10**6) == pytest.approx(2 * 64 + wanted)
    assert layer_shapes.served_layer_shapes(SimpleNamespace(**vars(config) | {"model_path": "/absent"})) == ()
