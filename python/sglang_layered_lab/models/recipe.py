"""What decides the bytes of a model folder, as frozen data. Knows no tensor, no file and no clock."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from sglang_layered.errors import ModelRecipeError

DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2})

# How `make-model` can store the weights of layers, beside plain floats.
QUANTIZATIONS = (
    *("fp8-block", "w8a8-int8", "awq", "gptq", "mxfp4", "compressed-fp8", "compressed-w4a16"),
    *("fp8-tensor", "modelopt-fp8", "nvfp4", "w4afp8"),
)

# Families whose tokens `make-model` can make guessable: one of each kind of draft.
DRAFTABLE = (
    *("qwen3_moe", "deepseek_v3", "glm4_moe", "mimo", "gpt_oss", "qwen3_next", "qwen3_5_moe", "nemotron_h"),
)

# Goes up when the same recipe gives other bytes than before, so that old folders are not taken for new ones.
RECIPE_FORMAT = 1

LATER = ("renames", "released")  # fields that recipes of a family did not always have

# The first ids of the vocabulary, in this order; the chat template uses the same names.
PAD_TOKEN, START_TOKEN, END_TOKEN = SPECIAL_TOKENS = ("<|pad|>", "<|start|>", "<|end|>")
PAD_ID, START_ID, END_ID = range(len(SPECIAL_TOKENS))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeBase:
    """What all recipes have. `vocab_size` is the tokenizer's too, so each id decodes.

    `quantization` is how the weights of the layers are stored, None: as plain floats. `dequantized` stores
    them as plain floats, rounded as the quantization rounds them. With `draftable` drafts can guess tokens.

    Raises:
        ModelRecipeError: a choice of the caller's is not possible; it names the option and what it takes.
    """

    arch: str
    preset: str = "tiny"
    dtype: str = "float32"
    num_layers: int = 7
    vocab_size: int = 1024
    max_position_tokens: int = 8192
    seed: int = 0
    quantization: str | None = None
    dequantized: bool = False
    draftable: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ModelRecipeError(
                f"--dtype {self.dtype!r} is unknown; choose one of {', '.join(DTYPE_BYTES)}"
            )
        for option, value, least in (("--layers", self.num_layers, 1), ("--seed", self.seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ModelRecipeError(f"{option} {value!r} must be a whole number of at least {least}")
        if self.quantization is None and self.dequantized:
            raise ModelRecipeError(
                "--dequantized says nothing without --quantization; add one or leave it out"
            )
        if self.draftable and (
            self.arch not in DRAFTABLE or self.preset not in ("tiny", "bench") or self.dtype != "float32"
        ):
            raise ModelRecipeError(
                "--draftable is for --preset tiny, or bench, with --dtype float32, of"
                f" {', '.join(DRAFTABLE)}; leave it out"
            )
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ModelRecipeError(
                f"--quantization {self.quantization!r} is unknown; choose one of {', '.join(QUANTIZATIONS)}"
            )

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data, as it is written to recipe.json."""
        fields = asdict(self)
        if self.quantization is None:  # folders from before there were such fields stay what they are
            del fields["quantization"], fields["dequantized"]
        if not self.draftable:
            del fields["draftable"]
        return fields

    def config_fields(self) -> dict[str, Any]:
        """Fields of config.json that this recipe decides."""
        return {
            "vocab_size": self.vocab_size,
            "num_hidden_layers": self.num_layers,
            "max_position_embeddings": self.max_position_tokens,
            "rms_norm_eps": 1e-6,
            "bos_token_id": None,
            "eos_token_id": END_ID,
            "pad_token_id": PAD_ID,
        }


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """The experts of one layer; every layer of the model has the same."""

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int  # of one expert


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe(RecipeBase):
    """A model whose tensors this package lays out; sizes are in elements if the name has no unit."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int  # of the dense MLP; unused by a layer that has experts
    experts: ExpertShape | None = None

    def config_fields(self) -> dict[str, Any]:
        """All fields of config.json."""
        config: dict[str, Any] = {
            **RecipeBase.config_fields(self),
            "architectures": ["LlamaForCausalLM" if self.experts is None else "Qwen3MoeForCausalLM"],
            "model_type": self.arch,
            "dtype": self.dtype,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_size,
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "use_cache": True,
        }
        if self.experts is None:
            return config | {"mlp_bias": False}
        return config | {
            "num_experts": self.experts.num_experts,
            "num_experts_per_tok": self.experts.num_experts_per_token,
            "moe_intermediate_size": self.experts.intermediate_size,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "output_router_logits": False,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyRecipe(RecipeBase):
    """A tiny model of a family; transformers knows the layout, or `tensors.LAYOUTS`.

    `fields` are those of transformers' config that this family sets for itself. `norm_weight` is the value of
    a norm that scales by one (Gemma stores the distance to 1), `embedding_std` small beside a layer's output.
    `model_type` and `architecture` are there where transformers' names are not `arch`, or not SGLang's.
    `around` is the config of a multimodal model around that of its language model. With `turns_experts` the
    released files hold an expert's matrices as [inputs, outputs] and transformers' modules do not. `renames`
    are beginnings of tensor names, of transformers and of the released files. `released` are fields of the
    language model's config in released files that transformers writes otherwise or leaves out.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    norm_weight: float = 1.0
    embedding_std: float = 0.15
    model_type: str = ""
    architecture: str = ""
    around: Mapping[str, Any] = field(default_factory=dict)
    turns_experts: bool = False
    renames: Mapping[str, str] = field(default_factory=dict)
    released: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As of any recipe; what came later is left out where it says nothing, so that folders stay valid."""
        fields = RecipeBase.as_dict(self)
        return {name: value for name, value in fields.items() if value or name not in LATER}

    def config_fields(self) -> dict[str, Any]:
        """All fields of config.json that are not transformers' defaults; lists are cut to the layers."""
        fitted = {
            name: value[: self.num_layers] if isinstance(value, list) else value
            for name, value in self.fields.items()
        }
        config = {**RecipeBase.config_fields(self), **fitted}
        return {**self.around, "text_config": config} if self.around else config


Recipe: TypeAlias = ModelRecipe | FamilyRecipe
