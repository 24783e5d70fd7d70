"""The sizes of each layer of a model, read off the model that transformers would build, without its numbers.

So no family is known here by name. What a parameter is follows from its name: everything below a module
called `experts` belongs to the routed experts, everything else of a layer to all rows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from sglang_layered.core.layer_shape import LayerShape

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")
EXPERT = re.compile(r"(?:^|\.)experts\.(?:(\d+)\.)?")
TOP_K_FIELDS = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts", "moe_topk")
BF16_BYTES = 2.0


def read_layer_shapes(config: Any, param_bytes: float = BF16_BYTES) -> tuple[LayerShape, ...]:
    """Sizes of every decoder layer in order; empty for a model that transformers does not know.

    Args:
        config: The text model's transformers configuration.
        param_bytes: Width of a parameter; a quantized checkpoint is taken as if it was not.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, AttributeError, TypeError, ImportError):
        return ()
    parts = _parameters_by_layer(model)
    if sorted(parts) != list(range(len(parts))):
        return ()
    return tuple(_shape(config, index, parts[index], param_bytes) for index in range(len(parts)))


def _parameters_by_layer(model: nn.Module) -> dict[int, dict[str, torch.Size]]:
    found: dict[int, dict[str, torch.Size]] = defaultdict(dict)
    for name, parameter in model.named_parameters():
        match = LAYER.search(name)
        if match is not None:
            found[int(match[1])][match[2]] = parameter.shape
    return found


def _shape(config: Any, index: int, parts: dict[str, torch.Size], param_bytes: float) -> LayerShape:
    experts = {name: shape for name, shape in parts.items() if EXPERT.search(name)}
    num_experts = _num_experts(experts)
    total = sum(shape.numel() for shape in experts.values())
    return LayerShape(
        dense_params=sum(shape.numel() for name, shape in parts.items() if name not in experts),
        num_experts=num_experts,
        num_experts_per_token=_top_k(config) if num_experts else 0,
        expert_params=total // num_experts if num_experts else 0,
        attention_width=_attention_width(config),
        window=_window(config, index),
        param_bytes=param_bytes,
    )


def _num_experts(experts: dict[str, torch.Size]) -> int:
    """Experts are a list of modules, or the first dimension of one tensor."""
    numbers = {int(match[1]) for name in experts if (match := EXPERT.search(name)) and match[1]}
    if numbers:
        return len(numbers)
    return max((shape[0] for shape in experts.values()), default=0)


def _top_k(config: Any) -> int:
    return next((int(value) for name in TOP_K_FIELDS if (value := getattr(config, name, None))), 1)


def _attention_width(config: Any) -> int:
    """Query heads x (key + value dimension) / 2."""
    latent = getattr(config, "qk_nope_head_dim", None)
    if latent:
        width = latent + config.qk_rope_head_dim + config.v_head_dim
        return int(config.num_attention_heads * width // 2)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_attention_heads * head_dim)


def _window(config: Any, index: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    if not kinds or "sliding" not in str(kinds[index]):
        return None
    return int(config.sliding_window)
