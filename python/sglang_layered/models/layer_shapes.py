"""The sizes of each layer of a model, read off the model that transformers would build, without its numbers.

So no family is known here by name. What a parameter is follows from its name: everything below a module
called `experts` belongs to the routed experts, everything else of a layer to all rows. How wide they are is
another question: quantized weights are as wide as the checkpoint's files say, or its configuration.
"""

import logging
from collections import defaultdict
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.models.checkpoint_bytes import (
    LAYER,
    StoredLayer,
    expert_of,
    has_quantized_weights,
    is_expert,
    read_stored_layers,
)
from sglang_layered.models.declared_width import DeclaredWidth, declared_width

logger = logging.getLogger(__name__)

TOP_K_FIELDS = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts", "moe_topk")
BF16_BYTES = 2.0


def served_layer_shapes(model_config: Any) -> tuple[LayerShape, ...]:
    """Sizes of every decoder layer as SGLang serves this model (an SGLang ModelConfig).

    How wide quantized weights are is read off the checkpoint's files where these are on this machine, else
    off the configuration. Empty when they cannot be known: transformers does not know the model, or neither
    says it.
    """
    text_config, param_bytes = model_config.hf_text_config, float(model_config.dtype.itemsize)
    shapes = read_layer_shapes(text_config, param_bytes)
    if not shapes or not has_quantized_weights(model_config):
        return shapes
    stored = read_stored_layers(model_config.model_path)
    is_whole = all(index in stored for index in range(len(shapes)))
    # Plain files of a model that is served quantized: `--quantization` does it at load.
    if is_whole and any(_is_quantized(layer) for layer in stored.values()):
        return tuple(_as_stored(shape, stored[index]) for index, shape in enumerate(shapes))
    width = declared_width(model_config)
    if width is None:
        logger.warning(
            "The bytes of this model's quantized weights are unknown: neither a safetensors file on this"
            " machine nor its configuration says how wide they are. Policy balanced cannot plan, and auto"
            " starts from a guess."
        )
        return ()
    return read_layer_shapes(text_config, param_bytes, width)


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


def read_layer_shapes(
    config: Any, param_bytes: float = BF16_BYTES, width: DeclaredWidth | None = None
) -> tuple[LayerShape, ...]:
    """Sizes of every decoder layer in order; empty for a model that transformers does not know.

    Args:
        config: The text model's transformers configuration.
        param_bytes: Width of every parameter that is not quantized.
        width: Of those that are; None: no parameter is. `served_layer_shapes` knows it.
    """
    try:
        with torch.device("meta"):
            model = _empty_model(config)
    except (ValueError, KeyError, AttributeError, TypeError, ImportError):
        return ()
    parts = _parameters_by_layer(model, param_bytes, width)
    if sorted(parts) != list(range(len(parts))):
        return ()
    return tuple(_shape(config, index, parts[index]) for index in range(len(parts)))


def _empty_model(config: Any) -> nn.Module:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    if getattr(config, "use_mamba_kernels", False):
        config = copy(config)
        config.use_mamba_kernels = False  # transformers would load them from its hub
    if getattr(config, "sparse_attention_config", None):  # MiniMax-M3's text calls itself M2's
        model_class = transformers.MiniMaxM3VLTextModel
        return model_class(model_class.config_class.from_dict(config.to_dict()))
    is_own = type(config).__module__.startswith("transformers.")
    if is_own and type(config) in transformers.AutoModelForCausalLM._model_mapping:
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    # The text part of a multimodal model has no head. For some SGLang has a configuration class of its own,
    # even under the name of transformers' one, without all its fields.
    model_class = getattr(transformers, MODEL_MAPPING_NAMES[config.model_type])
    return model_class(model_class.config_class.from_dict(config.to_dict()))


@dataclass(frozen=True, slots=True)
class _Part:
    """One parameter."""

    shape: torch.Size
    width: float

    @property
    def num_bytes(self) -> float:
        return self.shape.numel() * self.width


def _parameters_by_layer(
    model: nn.Module, param_bytes: float, width: DeclaredWidth | None
) -> dict[int, dict[str, _Part]]:
    found: dict[int, dict[str, _Part]] = defaultdict(dict)
    for module_name, module in model.named_modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{own_name}"
            match = LAYER.search(name)
            if match is None:
                continue
            # No method quantizes a bias, a norm or a router, which is no Linear in transformers.
            is_weight = (isinstance(module, nn.Linear) or is_expert(name)) and not own_name.endswith("bias")
            bytes_each = param_bytes
            if is_weight and width is not None:
                bytes_each = width.bytes_of(module_name, is_expert(name), param_bytes)
            found[int(match[1])][match[2]] = _Part(parameter.shape, bytes_each)
    return found


def _shape(config: Any, index: int, parts: dict[str, _Part]) -> LayerShape:
    experts = {name: part for name, part in parts.items() if is_expert(name)}
    num_experts = _num_experts(experts)
    total = sum(part.shape.numel() for part in experts.values())
    dense = [part for name, part in parts.items() if name not in experts]
    dense_params = sum(part.shape.numel() for part in dense)
    dense_width = sum(part.num_bytes for part in dense) / dense_params
    expert_width = sum(part.num_bytes for part in experts.values()) / total if total else dense_width
    return LayerShape(
        dense_params=dense_params,
        num_experts=num_experts,
        num_experts_per_token=_top_k(config) if num_experts else 0,
        expert_params=total // num_experts if num_experts else 0,
        attention_width=_attention_width(config) if _attends(config, index) else 0,
        window=_window(config, index),
        param_bytes=dense_width,
        expert_param_bytes=None if expert_width == dense_width else expert_width,
    )


def _num_experts(experts: dict[str, _Part]) -> int:
    """Experts are a list of modules, or the first dimension of one tensor."""
    numbers = {expert_of(name) for name in experts} - {None}
    if numbers:
        return len(numbers)
    return max((part.shape[0] for part in experts.values()), default=0)


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
    return int(config.sliding_window) if "sliding" in _kind(config, index) else None


def _attends(config: Any, index: int) -> bool:
    """False for a layer whose work does not grow with the tokens before: it has a state, or rows alone."""
    kind = _kind(config, index)
    return kind not in ("moe", "mlp") and not any(word in kind for word in ("linear", "mamba", "conv"))


def _kind(config: Any, index: int) -> str:
    """What the configuration calls a layer's attention; SGLang's own classes have another field for it."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    return str(kinds[index]) if kinds else ""
