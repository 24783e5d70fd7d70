"""The sizes of each layer of a model, read off the model that transformers would build, without its numbers.

So no family is known here by name. What a parameter is follows from its name: everything below a module
called `experts` belongs to the routed experts, everything else of a layer to all rows. How wide they are is
another question: quantized weights are as wide as the checkpoint's files say.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.model_refusals import has_quantized_weights
from sglang_layered.models.checkpoint_bytes import StoredLayer, read_stored_layers
from sglang_layered.models.tensor_names import LAYER, expert_of, is_expert

TOP_K_FIELDS = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts", "moe_topk")
BF16_BYTES = 2.0


def served_layer_shapes(model_config: Any) -> tuple[LayerShape, ...]:
    """Sizes of every decoder layer as SGLang serves this model (an SGLang ModelConfig).

    Empty when they cannot be known: transformers does not know the model, or its weights are quantized and no
    file of the checkpoint that says how wide they are is on this machine.
    """
    shapes = read_layer_shapes(model_config.hf_text_config, float(model_config.dtype.itemsize))
    if not has_quantized_weights(model_config):
        return shapes
    stored = read_stored_layers(model_config.model_path)
    is_whole = all(index in stored for index in range(len(shapes)))
    if not is_whole or not any(_is_quantized(layer) for layer in stored.values()):
        return ()
    return tuple(_as_stored(shape, stored[index]) for index, shape in enumerate(shapes))


def _is_quantized(layer: StoredLayer) -> bool:
    return layer.experts.is_quantized or layer.dense.is_quantized


def _as_stored(shape: LayerShape, stored: StoredLayer) -> LayerShape:
    """With the widths of a quantized checkpoint; a part of plain floats is served in the model's dtype."""
    dense = experts = shape.param_bytes
    if stored.dense.is_quantized:
        dense = stored.dense.num_bytes / shape.dense_params
    if stored.experts.is_quantized and shape.num_experts:
        experts = stored.experts.num_bytes / (shape.num_experts * shape.expert_params)
    return replace(shape, param_bytes=dense, expert_param_bytes=experts)


def read_layer_shapes(config: Any, param_bytes: float = BF16_BYTES) -> tuple[LayerShape, ...]:
    """Sizes of every decoder layer in order; empty for a model that transformers does not know.

    Args:
        config: The text model's transformers configuration.
        param_bytes: Width of every parameter, quantized or not; `served_layer_shapes` knows better.
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
    experts = {name: shape for name, shape in parts.items() if is_expert(name)}
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
    numbers = {expert_of(name) for name in experts} - {None}
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
