"""A decoder whose layers are all alike, read off a Hugging Face config as the recipe that describes it.

It knows no stack of unlike layers, no latent attention and no window: `from_config` refuses the first two and
takes a sliding window for full attention.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.pacing import ModelSizes
from sglang_layered.errors import ConfigError
from sglang_layered.models.declared_width import DeclaredWidth, width_of
from sglang_layered_lab.models.recipe import DTYPE_BYTES, ExpertShape, ModelRecipe

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
UNLIKE = (
    "mlp_only_layers",
    "first_k_dense_replace",
    "n_shared_experts",
    "kv_lora_rank",
    "num_shared_experts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedRecipe(ModelRecipe):
    """A model whose config.json declares quantized weights."""

    width: DeclaredWidth


QWEN3_30B_A3B = ModelRecipe(
    arch="qwen3_moe", preset="30b-a3b", dtype="bfloat16", num_layers=48, hidden_size=2048, num_heads=32,
    num_kv_heads=4, head_size=128, intermediate_size=0, vocab_size=151936, experts=ExpertShape(128, 8, 768),
)  # fmt: skip
GPT_OSS_20B = ModelRecipe(
    arch="gpt_oss", preset="20b", dtype="bfloat16", num_layers=24, hidden_size=2880, num_heads=64,
    num_kv_heads=8, head_size=64, intermediate_size=0, vocab_size=201088, experts=ExpertShape(32, 4, 2880),
)  # fmt: skip
MODELS = {"qwen3-30b-a3b": QWEN3_30B_A3B, "gpt-oss-20b": GPT_OSS_20B}


def named(name: str) -> ModelRecipe:
    """A model of `MODELS`, or the one whose config.json, or folder with it, has this path.

    Raises:
        ConfigError: it is neither.
    """
    if name in MODELS:
        return MODELS[name]
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name} is none of {', '.join(MODELS)} and no config.json: {error}") from error
    return from_config(config)


def from_config(config: Mapping[str, Any]) -> ModelRecipe:
    """The sizes that a config.json describes; what is neither float32 nor quantized is taken as 2 bytes wide.

    Raises:
        ConfigError: a size is missing, its layers are not alike, or how wide they are is not told.
    """
    unlike = [name for name in UNLIKE if config.get(name)]
    if unlike or config.get("decoder_sparse_step", 1) != 1:
        raise ConfigError(
            f"the config has {', '.join(unlike) or 'dense layers'}: the cost model knows only layers that are"
            " all alike; give another model"
        )
    width = width_of(declared) if (declared := config.get("quantization_config")) else None
    if declared and width is None:
        raise ConfigError("the config's quantization_config does not tell bytes a weight: give another model")
    try:
        hidden_size, num_heads = config["hidden_size"], config["num_attention_heads"]
        num_experts = next((config[name] for name in EXPERT_COUNTS if config.get(name)), None)
        size = config.get("moe_intermediate_size") or config["intermediate_size"]
        stored = config.get("torch_dtype") or config.get("dtype")
        return (partial(QuantizedRecipe, width=width) if width else ModelRecipe)(
            arch=config.get("model_type", ""),
            preset="",
            dtype="float32" if stored == "float32" else "bfloat16",
            num_layers=config["num_hidden_layers"],
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_size=config.get("head_dim") or hidden_size // num_heads,
            intermediate_size=0 if num_experts else size,
            vocab_size=config["vocab_size"],
            experts=ExpertShape(num_experts, config["num_experts_per_tok"], size) if num_experts else None,
        )
    except KeyError as error:
        raise ConfigError(f"the config has no {error.args[0]}: give a decoder's config.json") from error


def layer_of(shape: ModelRecipe) -> LayerShape:
    """One of its layers, as the scheduler counts it: attention's projections and the router are dense."""
    hidden, experts = shape.hidden_size, shape.experts
    dense_params = 2 * hidden * shape.head_size * (shape.num_heads + shape.num_kv_heads)
    width, plain = shape.num_heads * shape.head_size, float(DTYPE_BYTES[shape.dtype])
    param_bytes = expert_bytes = plain
    if isinstance(shape, QuantizedRecipe):
        param_bytes = shape.width.bytes_of("model.layers.0.self_attn.q_proj", False, plain)
        expert_bytes = shape.width.bytes_of("model.layers.0.mlp.experts", True, plain)
    if experts is None:
        dense_params += 3 * hidden * shape.intermediate_size
        return LayerShape(dense_params, attention_width=width, param_bytes=param_bytes)
    return LayerShape(
        dense_params=dense_params + experts.num_experts * hidden,
        num_experts=experts.num_experts,
        num_experts_per_token=experts.num_experts_per_token,
        expert_params=3 * hidden * experts.intermediate_size,
        attention_width=width,
        param_bytes=param_bytes,
        expert_param_bytes=expert_bytes,
    )


def sizes_of(shape: ModelRecipe, is_padded: bool = False) -> ModelSizes:
    """What the scheduler's step-time model asks of it."""
    return ModelSizes.of(shape.num_layers, (layer_of(shape),) * shape.num_layers, is_padded)
