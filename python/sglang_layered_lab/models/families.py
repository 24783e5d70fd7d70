"""Families whose layout transformers knows: the sizes of a tiny model of each, as config.json names them.

Every stack has an odd number of layers, so that groups are uneven, and every kind of layer the family has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from sglang_layered_lab.models.hf_config import END_ID, PAD_ID
from sglang_layered_lab.models.recipe import check_choices

Fields: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FamilyRecipe:
    """Everything that decides the bytes of a model folder.

    `fields` are those of transformers' config that this family sets for itself. `norm_weight` is the value of
    a norm that scales by one (Gemma stores the distance to 1), `embedding_std` small beside a layer's output.
    `model_type` and `architecture` are there where transformers' names are not `arch`, or not SGLang's.
    """

    arch: str
    fields: Mapping[str, Any]
    preset: str = "tiny"
    dtype: str = "float32"
    num_layers: int = 7
    vocab_size: int = 1024
    max_position_tokens: int = 8192
    seed: int = 0
    norm_weight: float = 1.0
    embedding_std: float = 0.15
    model_type: str = ""
    architecture: str = ""

    def __post_init__(self) -> None:
        check_choices(self.dtype, self.num_layers, self.seed)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data, as it is written to recipe.json."""
        return asdict(self)

    def _fitted(self, value: Any) -> Any:
        return value[: self.num_layers] if isinstance(value, list) else value

    def config_fields(self) -> dict[str, Any]:
        """All fields of config.json that are not transformers' defaults."""
        return {
            "vocab_size": self.vocab_size,
            "num_hidden_layers": self.num_layers,
            "max_position_embeddings": self.max_position_tokens,
            "rms_norm_eps": 1e-6,
            "bos_token_id": None,
            "eos_token_id": END_ID,
            "pad_token_id": PAD_ID,
            **{name: self._fitted(value) for name, value in self.fields.items()},
        }


MOST_LAYERS = 64  # entries of the lists below that say something of each layer
HEADS: Fields = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
LATENT_ATTENTION: Fields = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    # SGLang's MLA on a CPU knows no other rotary embedding.
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
DEEPSEEK_EXPERTS: Fields = {
    "intermediate_size": 256,
    "first_k_dense_replace": 2,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
    "moe_layer_freq": 1,
    "n_group": 4,
    "topk_group": 2,
}
GEMMA: Fields = HEADS | {"intermediate_size": 256, "sliding_window": 48, "query_pre_attn_scalar": 32}
GEMMA |= {"hidden_act": "gelu_pytorch_tanh"}  # what SGLang reads; transformers has a name of its own

FAMILIES: Mapping[str, FamilyRecipe] = MappingProxyType(
    {
        recipe.arch: recipe
        for recipe in (
            FamilyRecipe(
                "qwen2_moe",
                {
                    "hidden_size": 128,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "num_experts": 16,
                    "num_experts_per_tok": 4,
                    "moe_intermediate_size": 64,
                    "shared_expert_intermediate_size": 96,
                },
            ),
            FamilyRecipe(
                "gpt_oss",
                HEADS
                | {
                    "intermediate_size": 128,
                    "num_local_experts": 16,
                    "num_experts_per_tok": 4,
                    "sliding_window": 48,
                    "swiglu_limit": 7.0,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
                },
            ),
            FamilyRecipe(
                "mixtral",
                HEADS | {"intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2},
            ),
            FamilyRecipe(
                "deepseek_v2",
                LATENT_ATTENTION
                | DEEPSEEK_EXPERTS
                | {"q_lora_rank": None, "n_group": 1, "topk_group": 1}
                | {"topk_method": "greedy", "scoring_func": "softmax"}
                | {"rope_parameters": LATENT_ATTENTION["rope_parameters"] | {"mscale_all_dim": 0.0}},
            ),
            FamilyRecipe(
                "deepseek_v3",
                LATENT_ATTENTION
                | DEEPSEEK_EXPERTS
                | {"q_lora_rank": 48, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
            ),
            FamilyRecipe(
                "glm4_moe",
                HEADS
                | DEEPSEEK_EXPERTS
                | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "use_qk_norm": True},
            ),
            # No prompt reaches its window: SGLang's has one key more than transformers' there.
            FamilyRecipe(
                "exaone_moe",
                HEADS
                | {
                    "intermediate_size": 256,
                    "num_experts": 16,
                    "num_experts_per_tok": 4,
                    "moe_intermediate_size": 64,
                    "mlp_layer_types": ["sparse" if index % 2 else "dense" for index in range(MOST_LAYERS)],
                    "is_moe_layer": [bool(index % 2) for index in range(MOST_LAYERS)],
                    "sliding_window": 8192,
                    "sliding_window_pattern": 3,
                    "routed_scaling_factor": 1.0,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
                },
                architecture="ExaoneMoEForCausalLM",
            ),
            FamilyRecipe("qwen3", HEADS | {"intermediate_size": 256}),
            FamilyRecipe("gemma2", GEMMA, norm_weight=0.0, embedding_std=0.05),
            FamilyRecipe("gemma3", GEMMA, norm_weight=0.0, embedding_std=0.05, model_type="gemma3_text"),
        )
    }
)
