"""Sizes of a decoder whose layers are all alike, and how they are read off a Hugging Face config.

It knows no stack of unlike layers, no latent attention and no window: `from_config` refuses the first two and
takes a sliding window for full attention.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.errors import ConfigError

DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
UNLIKE = (
    "mlp_only_layers",
    "first_k_dense_replace",
    "n_shared_experts",
    "kv_lora_rank",
    "num_shared_experts",
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes in elements; `param_bytes` is the width of a parameter and a KV element, experts have their own.

    A dense model is one with a single expert that every token takes.
    """

    num_layers: int
    hidden_size: int
    num_experts: int
    num_experts_per_token: int
    expert_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    expert_param_bytes: float = 2.0
    param_bytes: float = 2.0

    @property
    def layer(self) -> LayerShape:
        """One of its layers, as the scheduler counts it: attention's projections and the router are dense."""
        projections = 2 * self.hidden_size * self.head_size * (self.num_heads + self.num_kv_heads)
        return LayerShape(
            dense_params=projections + self.num_experts * self.hidden_size,
            num_experts=self.num_experts,
            num_experts_per_token=self.num_experts_per_token,
            expert_params=3 * self.hidden_size * self.expert_size,
            attention_width=self.num_heads * self.head_size,
            param_bytes=self.param_bytes,
            expert_param_bytes=self.expert_param_bytes,
        )

    @property
    def head_params(self) -> int:
        """Parameters of the output matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def kv_layer_bytes(self) -> float:
        """KV bytes of one token in one layer."""
        return 2 * self.num_kv_heads * self.head_size * self.param_bytes


QWEN3_30B_A3B = ModelShape(48, 2048, 128, 8, 768, 32, 4, 128, 151936)
GPT_OSS_20B = ModelShape(24, 2880, 32, 4, 2880, 64, 8, 64, 201088)
MODELS = {"qwen3-30b-a3b": QWEN3_30B_A3B, "gpt-oss-20b": GPT_OSS_20B}


def named(name: str) -> ModelShape:
    """A model of `MODELS`, or the one whose config.json, or folder with it, has this path.

    Raises:
        ConfigError: it is neither.
    """
    if name in MODELS:
        return MODELS[name]
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    try:
        return from_config(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name} is none of {', '.join(MODELS)} and no config.json: {error}") from error


def from_config(config: Mapping[str, Any], dtype: str | None = None) -> ModelShape:
    """The shape that a config.json describes; `dtype` where it is served in another than its own.

    Raises:
        ConfigError: a size is missing, or its layers are not alike.
    """
    unlike = [name for name in UNLIKE if config.get(name)]
    if unlike or config.get("decoder_sparse_step", 1) != 1:
        raise ConfigError(
            f"the config has {', '.join(unlike) or 'dense layers'}: the cost model knows only layers that are"
            " all alike; give another model"
        )
    try:
        return _from_config(config, dtype)
    except KeyError as error:
        raise ConfigError(f"the config has no {error.args[0]}: give a decoder's config.json") from error


def _from_config(config: Mapping[str, Any], dtype: str | None) -> ModelShape:
    heads = config["num_attention_heads"]
    num_experts = next((config[name] for name in EXPERT_COUNTS if config.get(name)), None)
    stored = config.get("torch_dtype") or config.get("dtype") or "bfloat16"
    width = DTYPE_BYTES.get(dtype if dtype in DTYPE_BYTES else stored, 2.0)
    return ModelShape(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_experts=num_experts or 1,
        num_experts_per_token=config["num_experts_per_tok"] if num_experts else 1,
        expert_size=config.get("moe_intermediate_size") or config["intermediate_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        expert_param_bytes=width,
        param_bytes=width,
    )
