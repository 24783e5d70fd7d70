"""Quantized weights: which method layered mode serves, and which model has rows that share something."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_folders import QWEN3_MOE, model_folder
from sglang_layered.models.quantization import METHODS, ONE_SCALE, sharing_of
from sglang_layered.models.refused import model_refusal

FP8 = {"quant_method": "fp8", "fmt": "e4m3"}
DENSE = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def model_of(folder: Path, fields: dict[str, Any], method: str | None = None, **files: Any) -> Any:
    from sglang.srt.configs.model_config import ModelConfig

    return ModelConfig(str(model_folder(folder, fields, **files)), quantization=method)


def quantized(**fields: Any) -> dict[str, Any]:
    return QWEN3_MOE | {"quantization_config": fields}


def compressed(**activations: Any) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "input_activations": activations,
        "weights": {"num_bits": 8, "type": "float"},
    }
    return quantized(
        quant_method="compressed-tensors", format="float-quantized", config_groups={"group_0": group}
    )


def quark(**inputs: Any) -> dict[str, Any]:
    return quantized(quant_method="quark", global_quant_config={"input_tensors": inputs, "weight": {}})


def test_every_method_of_sglang_has_a_row() -> None:
    """A method that a version gains or loses fails here until somebody has read it."""
    from sglang.srt.layers.quantization import QUANTIZATION_METHODS

    assert set(METHODS) == set(QUANTIZATION_METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_row_says_how_it_is_known_or_why_not_and_what_instead(name: str) -> None:
    method = METHODS[name]
    if method.refusal is not None:
        assert re.fullmatch(r"\S.*; \S.*", method.refusal)
        assert not method.evidence
        assert method.sharing is None
    else:
        assert method.evidence or (method.sharing is not None and method.sharing.where == "always")


SERVED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MXFP4": (quantized(quant_method="mxfp4"), {}),
    "FP8 blocks": (quantized(**FP8, activation_scheme="dynamic", weight_block_size=[128, 128]), {}),
    "FP8 with fixed scales": (quantized(**FP8, activation_scheme="static"), {}),
    "FP8 of a dense model": (quantized(**FP8, activation_scheme="dynamic") | DENSE, {}),
    "GPTQ": (quantized(quant_method="gptq", bits=4, group_size=32, desc_act=False), {}),
    "AWQ": (quantized(quant_method="awq", bits=4, group_size=32, zero_point=True), {}),
    "int8": (quantized(quant_method="w8a8_int8"), {}),
    "compressed tensors, a scale a row": (compressed(dynamic=True, strategy="token"), {}),
    "compressed tensors, fixed scales": (compressed(dynamic=False, strategy="tensor"), {}),
    "compression_config": (
        QWEN3_MOE | {"compression_config": {"quant_method": "compressed-tensors", "config_groups": {}}},
        {},
    ),
    "Quark, a scale a row": (quark(is_dynamic=True, qscheme="per_channel"), {}),
    "bitsandbytes, 4 bits": (quantized(quant_method="bitsandbytes", load_in_4bit=True), {}),
    "ModelOpt FP8": (QWEN3_MOE, {"hf_quant_config": {"quantization": {"quant_algo": "FP8"}}}),
    "ModelOpt NVFP4": (QWEN3_MOE, {"hf_quant_config": {"quantization": {"quant_algo": "NVFP4"}}}),
    "ModelOpt in config.json, which names no method": (
        QWEN3_MOE | {"quantization_config": {"quant_algo": "FP8", "producer": {"name": "modelopt"}}},
        {},
    ),
    "ModelOpt of mixed precision": (
        QWEN3_MOE,
        {"hf_quant_config": {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": {}}}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "files"), SERVED.values(), ids=SERVED)
def test_weights_whose_rows_share_nothing_are_served_without_a_warning(
    tmp_path: Path, fields: dict[str, Any], files: dict[str, Any]
) -> None:
    model = model_of(tmp_path, fields, **files)
    assert model.quantization in METHODS
    assert model_refusal(model) is None
    assert sharing_of(model) is None


WARNED: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "FP8 at load": (QWEN3_MOE, "fp8", ONE_SCALE),
    "FP8 by tensor": (quantized(**FP8, activation_scheme="dynamic"), None, ONE_SCALE),
    "compressed tensors by tensor": (compressed(dynamic=True, strategy="tensor"), None, ONE_SCALE),
    "Quark by tensor": (quark(is_dynamic=True, qscheme="per_tensor"), None, ONE_SCALE),
    "bitsandbytes, 8 bits": (quantized(quant_method="bitsandbytes", load_in_8bit=True), None, "columns"),
    "GGUF": (QWEN3_MOE, "gguf", "a step of few rows"),
}


@pytest.mark.parametrize(("fields", "method", "text"), WARNED.values(), ids=WARNED)
def test_weights_whose_rows_share_something_are_served_with_one_warning(
    tmp_path: Path,
    fields: dict[str, Any],
    method: str | None,
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from sglang_layered.scheduler.base_loop import BaseLoop

    model = model_of(tmp_path, fields, method)
    assert model_refusal(model) is None
    loop = SimpleNamespace(layers=(), scheduler=SimpleNamespace(model_config=model))
    with caplog.at_level(logging.WARNING, "sglang_layered"):
        BaseLoop.warn(loop)  # type: ignore[arg-type]
    [said] = [record.message for record in caplog.records if record.name.startswith("sglang_layered")]
    assert said.startswith("Answers of this model depend on the requests beside them, in SGLang's own")
    assert text in said


def test_a_plain_model_is_served_without_a_warning(tmp_path: Path) -> None:
    model = model_of(tmp_path, QWEN3_MOE)
    assert model_refusal(model) is None
    assert sharing_of(model) is None


@pytest.mark.parametrize(
    ("name", "method", "files"),
    [
        ("modelslim", None, {"quant_model_description": {"model_quant_type": "W8A8"}}),
        *(
            (name, name, {})
            for name in ("petit_nvfp4", "quark_int4fp8_moe", "quark_mxfp4", "mxfp_w4a8", "humming")
        ),
    ],
)
def test_methods_that_are_not_served_say_why(
    tmp_path: Path, name: str, method: str | None, files: dict[str, Any]
) -> None:
    assert METHODS[name].refusal is not None
    told = model_refusal(model_of(tmp_path, QWEN3_MOE, method, **files))
    assert told == f"Qwen3MoeForCausalLM has weights of the method {name}, which {METHODS[name].refusal}"


def test_a_method_that_sglang_does_not_know_and_takes_for_plain_weights_is_refused(tmp_path: Path) -> None:
    unknown = {"quantization": {"quant_algo": "W4A16_AWQ"}}
    told = model_refusal(model_of(tmp_path, QWEN3_MOE, hf_quant_config=unknown))
    assert told is not None
    assert told.startswith("Qwen3MoeForCausalLM has quantized weights of a method that SGLang does not know")
