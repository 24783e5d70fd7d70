"""Quantizes a model folder in place, in the layouts of published checkpoints; or rounds it as if it were.

It knows the names that the weights of a layer end in, no model family. What stays plain: embeddings, norms,
routers, the head.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.quantized_weights import (
    BLOCK,
    GROUP,
    NVFP4_GROUP,
    W4AFP8_GROUP,
    Quantized,
    awq,
    fp8_block,
    fp8_channel,
    fp8_tensor,
    gptq,
    int8_channel,
    mxfp4,
    nvfp4,
    w4a16,
    w4afp8,
)

PROJECTION = re.compile(r"\blayers\.\d+\..*_proj(_with_mqa)?\.weight$")
JOINED_EXPERTS = re.compile(r"\bexperts\.(gate_up|down)_proj$")  # GPT-OSS: [experts, inputs, outputs]
ONE_EXPERT = re.compile(r"\bexperts\.\d+\.\w+_proj\.weight$")
IN_BFLOAT16 = re.compile(r"\b(experts\.(gate_up|down)_proj_bias|self_attn\.sinks)$")  # of GPT-OSS

Quantize = Callable[[torch.Tensor], Quantized]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a method stores weights, `quantization_config` of config.json, and what it has in bfloat16.

    Of `weights` the first counts whose pattern a name matches; a name that matches none stays plain.
    """

    weights: tuple[tuple[re.Pattern[str], Quantize], ...]
    config: Mapping[str, Any]
    bfloat16: re.Pattern[str] | None = None  # SGLang rounds these whatever dtype they have

    def quantizer_of(self, name: str) -> Quantize | None:
        """How the weight of this name is stored, or None."""
        return next((quantize for names, quantize in self.weights if names.search(name)), None)


def quantize_folder(folder: Path, method: str, *, dequantized: bool = False) -> None:
    """Rewrite the weights of a model folder in the layout of a method, one of LAYOUTS.

    Args:
        folder: of a model in float32 or bfloat16.
        method: a name in LAYOUTS.
        dequantized: write floats, rounded as the method rounds them: the same model for who knows no method.

    Raises:
        ModelRecipeError: the model has no weights that the method is for.
    """
    layout, num_quantized = LAYOUTS[method], 0
    for path in sorted(folder.glob("*.safetensors")):
        tensors: dict[str, torch.Tensor] = {}
        for name, weight in load_file(path).items():
            quantize = layout.quantizer_of(name)
            if quantize is None:
                is_rounded = layout.bfloat16 is not None and layout.bfloat16.search(name) is not None
                tensors[name] = weight.bfloat16().to(weight.dtype) if is_rounded else weight
                continue
            num_quantized += 1
            quantized = quantize(weight.float())
            if dequantized:
                tensors[name] = quantized.floats.to(weight.dtype).contiguous()
            else:
                stem = name.removesuffix("weight")
                tensors |= {stem + ending: part.contiguous() for ending, part in quantized.stored.items()}
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod((folder / "config.json").stat().st_mode)
    if not num_quantized:
        raise ModelRecipeError(
            f"--quantization {method} finds no weights of its own here; mxfp4 is for gpt_oss, the others for"
            " the rest"
        )
    if not dequantized:
        _declare(folder, layout.config)


def _declare(folder: Path, config: Mapping[str, Any]) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | {"quantization_config": dict(config)}
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = {name: file.name for file in folder.glob("*.safetensors") for name in load_file(file)}
        metadata = json.loads(index.read_text(encoding="utf-8"))["metadata"]
        index.write_text(json.dumps({"metadata": metadata, "weight_map": names}, indent=2) + "\n")


def _compressed(
    format_name: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None
) -> dict[str, Any]:
    """As llm-compressor declares one scheme for all linear layers."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": format_name,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        "quantization_status": "compressed",
    }


LAYOUTS: Mapping[str, Layout] = {
    "fp8-block": Layout(
        ((PROJECTION, fp8_block),),
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [BLOCK, BLOCK],
        },
    ),
    "w8a8-int8": Layout(
        ((PROJECTION, int8_channel),), {"quant_method": "w8a8_int8", "ignore": ["lm_head", "re:.*mlp.gate$"]}
    ),
    "awq": Layout(
        ((PROJECTION, awq),),
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ["mlp.gate."],
        },
    ),
    "gptq": Layout(
        ((PROJECTION, gptq),),
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "desc_act": False,
            "sym": False,
            "lm_head": False,
            "true_sequential": True,
            "checkpoint_format": "gptq",
            "dynamic": {"-:.*mlp\\.gate$": {}},
        },
    ),
    "mxfp4": Layout(
        ((JOINED_EXPERTS, mxfp4),),
        {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
        IN_BFLOAT16,
    ),
    "compressed-fp8": Layout(
        ((PROJECTION, fp8_channel),),
        _compressed(
            "float-quantized",
            {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
            {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True},
        ),
    ),
    "compressed-w4a16": Layout(
        ((PROJECTION, w4a16),),
        _compressed(
            "pack-quantized",
            {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": True},
            None,
        ),
    ),
    "fp8-tensor": Layout(
        ((PROJECTION, fp8_tensor),),
        {"quant_method": "fp8", "activation_scheme": "static", "fmt": "e4m3", "ignored_layers": ["lm_head"]},
    ),
    "modelopt-fp8": Layout(
        ((PROJECTION, fp8_tensor),),
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", "model.layers.*.mlp.gate"]},
    ),
    "nvfp4": Layout(
        ((PROJECTION, nvfp4),),
        {
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "group_size": NVFP4_GROUP,
            "ignore": ["lm_head", "model.layers.*.mlp.gate"],
        },
    ),
    "w4afp8": Layout(
        ((ONE_EXPERT, w4afp8), (PROJECTION, partial(fp8_block, block=W4AFP8_GROUP))),
        {"quant_method": "w4afp8"},
    ),
}
"""What `make-model --quantization` takes."""
