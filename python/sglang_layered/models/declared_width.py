"""How wide a quantized model's weights are by its configuration, where no file of the checkpoint says it.

It knows the methods that say their widths there. Bytes of a weight have its part of scales and zero points,
where these belong to a block or a group; one scale for a whole row or matrix is left out (below 0.5 %).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from sglang_layered.models.checkpoint_bytes import declared_quantization

FP4 = 0.5
EIGHT_BITS = ("fp8", "w8a8_fp8", "w8a8_int8", "blockwise_int8")
GROUPED = ("gptq", "gptq_marlin", "awq", "awq_marlin", "auto-round", "moe_wna16")
FIXED = {"mxfp4": FP4 + 1 / 32, "mxfp8": 1 + 1 / 32, "nvfp4_online": FP4 + 1 / 16}
MODELOPT = {"FP8": 1.0, "MXFP8": 1 + 1 / 32, "NVFP4": FP4 + 1 / 16, "W4A16_NVFP4": FP4 + 1 / 16}
EXCEPTIONS = ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers")


@dataclass(frozen=True, slots=True)
class DeclaredWidth:
    """Mean bytes of a quantized weight, scales and zero points included, and which modules are left plain."""

    weight_bytes: float
    plain_modules: tuple[str, ...]
    only_experts: bool

    def bytes_of(self, module: str, is_expert: bool, plain_bytes: float) -> float:
        """Bytes of a weight of this module, such as `model.layers.0.mlp.down_proj`."""
        is_plain = self.only_experts and not is_expert
        is_plain = is_plain or any(_names(pattern, module) for pattern in self.plain_modules)
        return plain_bytes if is_plain else self.weight_bytes


def declared_width(model_config: Any) -> DeclaredWidth | None:
    """What the configuration of this model (an SGLang ModelConfig) says; None: nothing that is known here."""
    if getattr(model_config, "is_fp4_experts", False):  # DeepSeek-V4: its configuration calls them FP8
        return None
    # At last `--quantization`, where the checkpoint declares nothing.
    return width_of(declared_quantization(model_config) or {"quant_method": model_config.quantization})


def width_of(declared: Mapping[str, Any]) -> DeclaredWidth | None:
    """What a config.json's `quantization_config` says; None: nothing that is known here."""
    weight_bytes = _weight_bytes(declared)
    if weight_bytes is None:
        return None
    plain = [str(pattern) for key in EXCEPTIONS for pattern in declared.get(key) or ()]
    return DeclaredWidth(weight_bytes, tuple(plain), declared.get("quant_method") == "mxfp4")


def _weight_bytes(declared: Mapping[str, Any]) -> float | None:
    method = declared.get("quant_method")
    if "quant_algo" in declared:
        return MODELOPT.get(declared["quant_algo"])
    if method == "compressed-tensors":
        groups = declared.get("config_groups") or {}
        widths = {_compressed(group["weights"]) for group in groups.values() if group.get("weights")}
        return widths.pop() if len(widths) == 1 else None
    if method in EIGHT_BITS:
        block = declared.get("weight_block_size")
        return 1 + (4 / prod(block) if block else 0.0)
    bits = declared.get("bits") or declared.get("w_bit")
    if method in GROUPED and bits:
        group = declared.get("group_size") or declared.get("q_group_size")
        return _grouped(bits, group, has_zeros=True)
    return FIXED.get(str(method))


def _compressed(weights: Mapping[str, Any]) -> float:
    bits, group = weights["num_bits"], weights.get("group_size")
    if weights.get("type") == "float" and bits == 4 and group:
        return FP4 + 1 / int(group)
    return _grouped(bits, group, has_zeros=not weights.get("symmetric", True))


def _grouped(bits: int, group: int | None, has_zeros: bool) -> float:
    """A group has a scale of 2 bytes; a group of -1 or 0 is the whole row."""
    return bits / 8 + ((2 + has_zeros * bits / 8) / group if group and group > 0 else 0.0)


def _names(pattern: str, module: str) -> bool:
    """Whether an exception names this module: all of its name, a part of it, or a module that it is in."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    # What stands before `layers.` differs between the text model of transformers and a checkpoint of several.
    pattern, module = (name[max(name.find("layers."), 0) :] for name in (pattern, module))
    if "*" in pattern:
        return fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")
    return f".{pattern}." in f".{module}."
