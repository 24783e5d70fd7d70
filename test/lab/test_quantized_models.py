"""`make-model --quantization`: what is stored stands for the floats of the twin, by another reading of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file
from sglang_layered_kernels.cpu.dequantize import (
    dequantize_fp8,
    dequantize_int4,
    dequantize_int8,
    dequantize_mxfp4,
)
from sglang_layered_kernels.cpu.nvfp4 import widened
from sglang_layered_kernels.cpu.w4a8 import int4_weight

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.catalogue import find_recipe
from sglang_layered_lab.models.make import make_from_recipe
from sglang_layered_lab.models.quantize import LAYOUTS
from sglang_layered_lab.models.quantized_weights import BLOCK, GROUP
from sglang_layered_lab.models.recipe import QUANTIZATIONS, ModelRecipe

MOST_WRONG = {"fp8-block": 0.04, "w8a8-int8": 0.02, "awq": 0.13, "gptq": 0.13, "mxfp4": 0.2}
MOST_WRONG |= {"compressed-fp8": 0.04, "compressed-w4a16": 0.2, "fp8-tensor": 0.04, "modelopt-fp8": 0.04}
MOST_WRONG |= {"nvfp4": 0.13, "w4afp8": 0.2}


def made(
    arch: str, folder: Path, method: str | None, *, dequantized: bool = False
) -> dict[str, torch.Tensor]:
    recipe = find_recipe(arch, "tiny", num_layers=1, quantization=method, dequantized=dequantized)
    if isinstance(recipe, ModelRecipe) and recipe.experts is not None:
        recipe = replace(recipe, experts=replace(recipe.experts, intermediate_size=128))
    make_from_recipe(recipe, folder)
    config = json.loads((folder / "config.json").read_text())
    assert ("quantization_config" in config) == (method is not None and not dequantized)
    tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return tensors


def read(method: str, stored: dict[str, torch.Tensor], stem: str, like: torch.Tensor) -> torch.Tensor:
    def part(ending: str) -> torch.Tensor:
        return stored[stem + ending]

    dtype = torch.float32
    if method == "fp8-block":
        return dequantize_fp8(part("weight"), part("weight_scale_inv"), (BLOCK, BLOCK), dtype)
    if method == "compressed-w4a16":
        numbers = unpack_from_int32(part("weight_packed"), 4, torch.Size(part("weight_shape").tolist()))
        return dequantize_int8(numbers.unflatten(1, (-1, GROUP)), part("weight_scale"), dtype).flatten(1)
    if method == "nvfp4":
        return widened(part("weight"), part("weight_scale")).float() * part("weight_scale_2")
    if method == "w4afp8" and "experts" in stem:
        return int4_weight(part("weight"), part("weight_scale_inv").t()).float()
    if method == "w4afp8":
        return dequantize_fp8(part("weight"), part("weight_scale_inv"), (128, 128), dtype)
    if method in ("fp8-tensor", "modelopt-fp8"):
        return part("weight").float() * float(part("weight_scale"))
    if method in ("w8a8-int8", "compressed-fp8"):
        return dequantize_int8(part("weight"), part("weight_scale"), dtype)
    if method == "mxfp4":
        return dequantize_mxfp4(part("_blocks").flatten(-2), part("_scales"), dtype).transpose(1, 2)
    return dequantize_int4(part("qweight"), part("qzeros"), part("scales"), like.shape[1], dtype)


@pytest.mark.parametrize("method", QUANTIZATIONS)
def test_the_stored_weights_stand_for_those_of_the_twin(tmp_path: Path, method: str) -> None:
    arch = "gpt_oss" if method == "mxfp4" else "qwen3_moe"
    plain = made(arch, tmp_path / "plain", None)
    twin = made(arch, tmp_path / "twin", method, dequantized=True)
    stored = made(arch, tmp_path / "quantized", method)
    quantized = [name for name in plain if LAYOUTS[method].quantizer_of(name) is not None]
    # One layer: four projections of attention and three of each of 16 experts; or two tensors of all experts.
    assert len(quantized) == (2 if method == "mxfp4" else 4 + 3 * 16)
    for name in plain:
        if name not in quantized:
            rounds = LAYOUTS[method].bfloat16
            is_rounded = rounds is not None and rounds.search(name) is not None
            kept = plain[name].bfloat16().float() if is_rounded else plain[name]
            assert torch.equal(stored[name], kept)
            assert torch.equal(twin[name], kept)
            continue
        assert name not in stored or stored[name].dtype != torch.float32
        got = read(method, stored, name.removesuffix("weight"), plain[name])
        torch.testing.assert_close(got, twin[name], rtol=1e-6, atol=1e-8)
        wrong = float((twin[name] - plain[name]).norm() / plain[name].norm())
        assert 0 < wrong < MOST_WRONG[method]


def test_every_method_has_a_layout() -> None:
    assert tuple(LAYOUTS) == QUANTIZATIONS


def test_a_plain_recipe_is_recorded_as_before() -> None:
    assert not {"quantization", "dequantized"} & set(find_recipe("llama", "tiny").as_dict())
    assert find_recipe("llama", "tiny", quantization="awq").as_dict()["quantization"] == "awq"


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("llama", {"quantization": "int3"}, "--quantization 'int3' is unknown; choose one of fp8-block"),
        ("llama", {"dequantized": True}, "--dequantized says nothing without --quantization"),
        ("llama", {"quantization": "mxfp4"}, "--quantization mxfp4 finds no weights of its own"),
        (
            "qwen3_moe",
            {"quantization": "w4afp8"},
            "w4afp8 has a scale for 128 inputs and these experts have 64",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(
    tmp_path: Path, arch: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelRecipeError, match=message):
        make_from_recipe(find_recipe(arch, "tiny", num_layers=1, **options), tmp_path / "model")  # type: ignore[arg-type]
    assert not (tmp_path / "model").exists()
