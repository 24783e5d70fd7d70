"""Quantizes a model folder in place, in the layouts of published checkpoints; or rounds it as if it were.

It knows the names that the weights of a layer end in, no model family. What stays plain: embeddings, norms,
routers, the head.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sglang_layered.errors import ModelRecipeError

PROJECTION = re.compile(r"\blayers\.\d+\..*_proj(_with_mqa)?\.weight$")
JOINED_EXPERTS = re.compile(r"\bexperts\.(gate_up|down)_proj$")  # GPT-OSS: [experts, inputs, outputs]
IN_BFLOAT16 = re.compile(r"\b(experts\.(gate_up|down)_proj_bias|self_attn\.sinks)$")  # of GPT-OSS
BLOCK = 32  # outputs and inputs that share an FP8 scale; releases have 128, wider than tiny layers
GROUP = 32  # inputs that share a scale
FP8_LARGEST, INT8_LARGEST, INT4_LARGEST = 448.0, 127, 15
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
FP4_LARGEST_EXPONENT, E8M0_BIAS = 2, 127
SMALLEST_SCALE = 1e-10
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # which nibble holds each of eight outputs


@dataclass(frozen=True, slots=True)
class Quantized:
    """A weight as it is stored, by what its names end in, and the floats that this stands for."""

    stored: dict[str, torch.Tensor]
    floats: torch.Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """How a method stores weights, `quantization_config` of config.json, and what it has in bfloat16."""

    names: re.Pattern[str]
    quantize: Callable[[torch.Tensor], Quantized]
    config: Mapping[str, Any]
    bfloat16: re.Pattern[str] | None = None  # SGLang rounds these whatever dtype they have


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
            if layout.names.search(name) is None:
                is_rounded = layout.bfloat16 is not None and layout.bfloat16.search(name) is not None
                tensors[name] = weight.bfloat16().to(weight.dtype) if is_rounded else weight
                continue
            num_quantized += 1
            quantized = layout.quantize(weight.float())
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


def fp8_block(weight: torch.Tensor) -> Quantized:
    """FP8 with a float32 scale for a square of weights, as DeepSeek-V3's; [outputs, inputs]."""
    outputs, inputs = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -inputs % BLOCK, 0, -outputs % BLOCK))
    blocks = padded.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    scales = (blocks.abs().amax((1, 3)) / FP8_LARGEST).clamp(min=SMALLEST_SCALE)
    wide = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:outputs, :inputs]
    kept = (weight / wide).to(torch.float8_e4m3fn)
    return Quantized({"weight": kept, "weight_scale_inv": scales}, kept.float() * wide)


def int8_channel(weight: torch.Tensor) -> Quantized:
    """Int8 with a float32 scale an output; [outputs, inputs]."""
    scales = (weight.abs().amax(1, keepdim=True) / INT8_LARGEST).clamp(min=SMALLEST_SCALE)
    kept = (weight / scales).round().to(torch.int8)
    return Quantized({"weight": kept, "weight_scale": scales}, kept.float() * scales)


def awq(weight: torch.Tensor) -> Quantized:
    """Eight 4-bit weights an int32 along the outputs, which are in AWQ's order; [outputs, inputs]."""
    kept, zeros, scales, floats = _int4(weight)
    stored = {
        "qweight": _packed(kept.unflatten(1, (-1, 8)), AWQ_NIBBLES),
        "qzeros": _packed(zeros.unflatten(1, (-1, 8)), AWQ_NIBBLES),
        "scales": scales,
    }
    return Quantized(stored, floats)


def gptq(weight: torch.Tensor) -> Quantized:
    """Eight 4-bit weights an int32 along the inputs, zero points less one; [outputs, inputs]."""
    kept, zeros, scales, floats = _int4(weight)
    stored = {
        "qweight": _packed(kept.unflatten(0, (-1, 8)).transpose(1, 2), range(8)),
        "qzeros": _packed((zeros - 1).unflatten(1, (-1, 8)), range(8)),
        "scales": scales,
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).to(torch.int32),
    }
    return Quantized(stored, floats)


def mxfp4(weight: torch.Tensor) -> Quantized:
    """FP4 with a power of two for 32 inputs; [experts, inputs, outputs], as transformers has them."""
    groups = weight.transpose(1, 2).unflatten(-1, (-1, GROUP))
    exponents = groups.abs().amax(-1).clamp(min=SMALLEST_SCALE).log2().floor() - FP4_LARGEST_EXPONENT
    values = torch.tensor(FP4_VALUES)
    nearest = ((groups / exponents.exp2()[..., None])[..., None] - values).abs().argmin(-1)
    floats = (values[nearest] * exponents.exp2()[..., None]).flatten(-2).transpose(1, 2)
    blocks = (nearest[..., 0::2] | (nearest[..., 1::2] << 4)).to(torch.uint8)
    return Quantized({"_blocks": blocks, "_scales": (exponents + E8M0_BIAS).to(torch.uint8)}, floats)


def _int4(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Numbers of 0 to 15 [inputs, outputs], zero points and float16 scales of each group, and the floats."""
    groups = weight.t().unflatten(0, (-1, GROUP))
    low, high = groups.amin(1), groups.amax(1)
    scales = ((high - low) / INT4_LARGEST).clamp(min=SMALLEST_SCALE).half().clamp(min=1e-7)
    wide = scales.float()[:, None]
    zeros = (-low / scales.float()).round().clamp(1, INT4_LARGEST)  # GPTQ stores them less one
    kept = (groups / wide + zeros[:, None]).round().clamp(0, INT4_LARGEST)
    floats = ((kept - zeros[:, None]) * wide).flatten(0, 1).t()
    return kept.flatten(0, 1).long(), zeros.long(), scales, floats


def _packed(numbers: torch.Tensor, nibbles: range | tuple[int, ...]) -> torch.Tensor:
    """[..., 8] numbers of 0 to 15 as [...] int32."""
    total = sum(
        (numbers[..., at] << (4 * nibble) for at, nibble in enumerate(nibbles)), start=torch.tensor(0)
    )
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


LAYOUTS: Mapping[str, Layout] = {
    "fp8-block": Layout(
        PROJECTION,
        fp8_block,
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [BLOCK, BLOCK],
        },
    ),
    "w8a8-int8": Layout(
        PROJECTION, int8_channel, {"quant_method": "w8a8_int8", "ignore": ["lm_head", "re:.*mlp.gate$"]}
    ),
    "awq": Layout(
        PROJECTION,
        awq,
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
        PROJECTION,
        gptq,
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
        JOINED_EXPERTS,
        mxfp4,
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
}
"""What `make-model --quantization` takes."""
