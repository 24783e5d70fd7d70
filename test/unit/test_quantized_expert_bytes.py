"""Bytes of a quantized expert: SGLang's own weights of a layer against checkpoints in the published layouts.

Weights are made by SGLang's `create_weights`, those of FP8 blocks by hand in its form. What follows loading
is SGLang's own for MXFP4 and NVFP4, with a reshape in the place of Marlin's repacking, which is a GPU kernel;
that of the others keeps sizes.
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
from sglang_layered.upstream.experts import expert_bytes


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
    if kind in ("w8a8", "wna16"):
        from sglang.srt.runtime_context import get_parallel

        layer.quant_method = method = w8a8_method() if kind == "w8a8" else wna16_method()
        with get_parallel().override(tp_size=1):
            method.create_weights(layer, EXPERTS, HIDDEN, INNER, torch.float16)
        return layer
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


def w8a8_method() -> Any:
    from sglang.srt.layers.quantization.w8a8_int8 import W8A8Int8MoEMethod

    return W8A8Int8MoEMethod.__new__(W8A8Int8MoEMethod)


def wna16_method() -> Any:
    from sglang.srt.layers.quantization.compressed_tensors.schemes import CompressedTensorsWNA16MoE

    method = CompressedTensorsWNA16MoE.__new__(CompressedTensorsWNA16MoE)
    method.strategy, method.packed_factor, method.group_size = "group", 8, GROUP
    method.actorder, method.sym = None, True
    return method


@pytest.mark.parametrize(
    ("kind", "tensors", "without"),
    [
        ("fp8", checkpoints.fp8_block(), ()),
        # Marlin reads no zero points.
        ("gptq", checkpoints.gptq(), ("g_idx", "qzeros")),
        ("awq", checkpoints.awq(), ()),
        ("w8a8", checkpoints.w8a8(), ()),
        ("wna16", checkpoints.wna16(), ("weight_shape",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_experts_have_the_bytes_of_the_checkpoint(
    kind: str, tensors: dict[str, torch.Tensor], without: tuple[str, ...]
) -> None:
    assert expert_bytes(scheme_layer(kind)) == checkpoints.expert_bytes(tensors, *without)


def nvfp4_layer(monkeypatch: pytest.MonkeyPatch, hidden: int = HIDDEN) -> nn.Module:
    from sglang.srt.layers.quantization.modelopt_quant import ModelOptNvFp4FusedMoEMethod

    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)  # where scales are swizzled
    method = ModelOptNvFp4FusedMoEMethod.__new__(ModelOptNvFp4FusedMoEMethod)
    method.enable_flashinfer_trtllm_moe = False
    method.quant_config = SimpleNamespace(is_checkpoint_nvfp4_serialized=True, group_size=16)
    method._moe_runner_backend = SimpleNamespace(is_marlin=lambda: True)
    layer = layer_of(method, hidden=hidden)
    layer.num_experts = EXPERTS
    method.create_weights(layer, EXPERTS, hidden, INNER, torch.bfloat16, weight_loader=None)
    return layer


def use_plain_marlin(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.layers.quantization import marlin_utils_fp4

    def repack(b_q_weight: torch.Tensor, size_k: int, **given: Any) -> torch.Tensor:
        return b_q_weight.reshape(size_k // 16, -1)

    # Without a GPU SGLang does not import it.
    monkeypatch.setattr(marlin_utils_fp4, "gptq_marlin_repack", repack, raising=False)
    monkeypatch.setattr(marlin_utils_fp4, "marlin_make_workspace", lambda *given: torch.zeros(1))


def test_nvfp4_on_marlin_counts_the_scales_that_marlin_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plain_marlin(monkeypatch)
    layer = nvfp4_layer(monkeypatch)
    layer.quant_method.process_weights_after_loading(layer)
    assert layer.w13_blockscale_swizzled is not layer.w13_weight_scale  # left over
    # A scale of each of the three matrices in the file; one for gate and up, and one for down, in bfloat16.
    narrowed = 3 * 4 - 2 * 2
    assert expert_bytes(layer) == checkpoints.expert_bytes(checkpoints.nvfp4(), "input_scale") - narrowed


def test_nvfp4_counts_scales_as_they_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.layers.quantization.modelopt_quant import alias_or_bind_derived_param, swizzle_blockscale

    layer = nvfp4_layer(monkeypatch, hidden=192)
    for name in ("w13", "w2"):
        swizzled = swizzle_blockscale(getattr(layer, f"{name}_weight_scale"))
        alias_or_bind_derived_param(layer, f"{name}_weight_scale", f"{name}_blockscale_swizzled", swizzled)
    assert layer.w2_blockscale_swizzled.shape[1] == 256  # of 192 rows
    weights, scales = 3 * 192 * INNER // 2, 2 * INNER * 192 // 16 + 256 * INNER // 16
    assert expert_bytes(layer) == weights + scales + 3 * 4


def test_mxfp4_on_marlin_counts_one_set_of_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.layers.quantization.marlin_utils_fp4 import prepare_moe_mxfp4_layer_for_marlin

    use_plain_marlin(monkeypatch)
    layer = layer_of(SimpleNamespace())
    for name, out, inner in (("w13", 2 * INNER, HIDDEN), ("w2", HIDDEN, INNER)):
        weight = torch.zeros(EXPERTS, out, inner // 2, dtype=torch.uint8)
        setattr(layer, f"{name}_weight", nn.Parameter(weight, requires_grad=False))
        scale = torch.full((EXPERTS, out, inner // 32), 127, dtype=torch.uint8)
        scale = scale.view(torch.float8_e8m0fnu)
        setattr(layer, f"{name}_weight_scale_inv", nn.Parameter(scale, requires_grad=False))
    prepare_moe_mxfp4_layer_for_marlin(layer)
    assert expert_bytes(layer) == checkpoints.expert_bytes(checkpoints.mxfp4(), "bias")


def test_bitsandbytes_is_refused() -> None:
    layer = layer_of(SimpleNamespace())
    layer.w13_weight = torch.zeros(EXPERTS, HIDDEN * INNER, 1, dtype=torch.uint8)
    layer.w2_weight = torch.zeros(EXPERTS, HIDDEN * INNER // 2, 1, dtype=torch.uint8)
    assert expert_bytes(layer) == 3 * HIDDEN * INNER // 2
    layer.w2_weight.bnb_quant_state = object()
    with pytest.raises(UnsupportedError, match="w2: bitsandbytes widens all experts in every forward"):
        expert_bytes(layer)


@pytest.mark.parametrize("kind", ["mxfp4", "fp8_block", "gptq", "awq", "nvfp4", "w8a8", "wna16"])
def test_headers_of_a_checkpoint_tell_the_bytes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = getattr(checkpoints, kind)()
    attention = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8, dtype=torch.float32)}
    draft = {"mtp.layers.0.mlp.gate_proj.weight": torch.zeros(8, 8)}  # a stack beside the model's own
    checkpoints.write(tmp_path, tensors | attention | draft)
    [stored] = read_stored_layers(str(tmp_path)).values()
    wanted = EXPERTS * checkpoints.expert_bytes(tensors, "g_idx", "input_scale", "weight_shape")
    assert (stored.experts.num_bytes, stored.experts.is_quantized) == (wanted, True)
    assert (stored.dense.num_bytes, stored.dense.is_quantized) == (256, False)
    plain = LayerShape(64, EXPERTS, 2, 3 * HIDDEN * INNER, param_bytes=2.0)
    monkeypatch.setattr(layer_shapes, "read_layer_shapes", lambda *given: (plain,))
    config = SimpleNamespace(
        hf_text_config=None, dtype=torch.bfloat16, quantization=kind, model_path=str(tmp_path)
    )
    [shape] = layer_shapes.served_layer_shapes(config)
    assert shape.expert_bytes == pytest.approx(wanted)
    assert shape.bytes_read(10**6) == pytest.approx(2 * 64 + wanted)
