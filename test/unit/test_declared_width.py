"""Widths of quantized weights by the configuration alone, against checkpoints in the published layouts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import quantized_checkpoints as checkpoints
from quantized_checkpoints import BLOCK, EXPERTS, GROUP, HIDDEN, INNER
from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.models.layer_shapes import served_layer_shapes


def model(declared: dict[str, Any] | None, path: str = "/absent", **fields: Any) -> SimpleNamespace:
    """What of an SGLang ModelConfig is looked at."""
    kind = fields.pop("model_type", "qwen3_moe")
    config = AutoConfig.for_model(
        kind,
        **{"hidden_size": HIDDEN, "moe_intermediate_size": INNER, "num_experts": EXPERTS} | fields,
        **{"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16},
    )
    config.quantization_config = declared
    method = declared and declared.get("quant_method", "modelopt")
    return SimpleNamespace(
        hf_config=config,
        hf_text_config=config,
        dtype=torch.bfloat16,
        quantization=method,
        model_path=path,
    )


def shape(config: SimpleNamespace) -> LayerShape:
    [found] = served_layer_shapes(config)
    return found


def compressed(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


BY_KIND: dict[str, dict[str, Any]] = {
    "fp8_block": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP},
    "wna16": compressed(num_bits=4, type="int", group_size=GROUP, symmetric=True),
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "w8a8": compressed(num_bits=8, type="int", strategy="channel", group_size=None),
}
# What belongs to a whole matrix or row is left out: three scales of 4 bytes, and a scale for each output.
LEFT_OUT = {"nvfp4": 3 * 4, "w8a8": 4 * (2 * INNER + HIDDEN)}


@pytest.mark.parametrize("kind", BY_KIND)
def test_configurations_tell_the_bytes_of_the_files(kind: str) -> None:
    tensors = getattr(checkpoints, kind)()
    stored = checkpoints.expert_bytes(tensors, "g_idx", "input_scale", "weight_shape")
    found = shape(model(BY_KIND[kind])).expert_bytes / EXPERTS
    assert found == pytest.approx(stored - LEFT_OUT.get(kind, 0), rel=1e-9)


def test_an_expert_of_gpt_oss_20b_is_13_megabytes_and_its_attention_is_plain() -> None:
    sizes: dict[str, Any] = {"hidden_size": 2880, "intermediate_size": 2880, "num_experts": 32}
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    declared = {"quant_method": "mxfp4", "modules_to_not_convert": plain}
    found = shape(model(declared, model_type="gpt_oss", **sizes))
    weights, biases = 3 * 2880 * 2880, 3 * 2880
    assert found.expert_bytes / 32 == pytest.approx(weights / 2 + weights / 32 + 2 * biases)
    assert found.expert_bytes / 32 / 1e6 == pytest.approx(13.25, abs=0.02)
    assert found.param_bytes == 2.0


@pytest.mark.parametrize(
    ("key", "patterns", "num_plain"),
    [
        ("modules_to_not_convert", ["lm_head"], 0),
        ("modules_to_not_convert", ["self_attn"], 4),
        ("modules_to_not_convert", ["model.layers.0.self_attn.o_proj"], 1),
        ("modules_to_not_convert", ["language_model.model.layers.0.self_attn"], 4),
        ("modules_to_not_convert", ["attn", "model.layers.00"], 0),
        ("exclude_modules", ["model.layers.*.self_attn*"], 4),
        ("ignore", ["re:.*self_attn.[qk]_proj$"], 2),
    ],
)
def test_exceptions_of_a_checkpoint_stay_plain(key: str, patterns: list[str], num_plain: int) -> None:
    found = shape(model({"quant_method": "fp8", key: patterns}))
    matrix = HIDDEN * 64
    norms, router = 2 * HIDDEN + 2 * 16, EXPERTS * HIDDEN
    wanted = 2 * (norms + router) + (4 - num_plain) * matrix + 2 * num_plain * matrix
    assert found.dense_params * found.param_bytes == pytest.approx(wanted)


def test_quantization_at_load_counts_the_width_that_is_served(tmp_path: Path) -> None:
    attention = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8, dtype=torch.bfloat16)}
    checkpoints.write(tmp_path, attention)
    config = model(None, str(tmp_path))
    assert shape(config).expert_bytes == 2 * 3 * EXPERTS * HIDDEN * INNER
    config.quantization = "fp8"
    assert shape(config).expert_bytes == 3 * EXPERTS * HIDDEN * INNER


def test_a_multimodal_checkpoint_declares_of_its_language_model() -> None:
    config = model({"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]})
    expected = shape(config)
    config.hf_config = SimpleNamespace()
    assert shape(config) == expected
    assert expected.expert_bytes < 2 * 3 * EXPERTS * HIDDEN * INNER


def test_modelopt_declares_beside_the_configuration(tmp_path: Path) -> None:
    declared = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["*self_attn*"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(declared))
    found = shape(model(None, str(tmp_path)))
    assert found.expert_bytes == 3 * EXPERTS * HIDDEN * INNER * (1 / 2 + 1 / 16)
    assert found.param_bytes == 2.0


@pytest.mark.parametrize(
    "declared",
    [
        {"quant_method": "gguf"},
        {"quant_method": "gptq"},
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"a": {"weights": {"num_bits": 4}}, "b": {"weights": {"num_bits": 8}}},
        },
    ],
)
def test_what_no_configuration_says_is_unknown_and_logged(
    declared: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert served_layer_shapes(model(declared)) == ()
    assert "bytes of this model's quantized weights are unknown" in caplog.text


def test_fp4_experts_that_are_declared_fp8_are_unknown() -> None:
    config = model({"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]})
    config.is_fp4_experts = True
    assert served_layer_shapes(config) == ()


def test_modelopt_declares_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, local_files_only: str(tmp_path))
    config = model(None, "some/model")
    config.quantization = "modelopt_fp8"  # SGLang's reading of the same file
    assert shape(config).expert_bytes == 3 * EXPERTS * HIDDEN * INNER
