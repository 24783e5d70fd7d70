"""What `make-model` can make: sizes as frozen data. Knows no tensor, no file and no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from sglang_layered.errors import ModelRecipeError

DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2})

# Goes up when the same recipe gives other bytes than before, so that old folders are not taken for new ones.
RECIPE_FORMAT = 1


def check_choices(dtype: str, num_layers: int, seed: int) -> None:
    """Check what a caller may choose.

    Raises:
        ModelRecipeError: it names the option and says what it takes.
    """
    if dtype not in DTYPE_BYTES:
        raise ModelRecipeError(f"--dtype {dtype!r} is unknown; choose one of {', '.join(DTYPE_BYTES)}")
    if not isinstance(num_layers, int) or num_layers < 1:
        raise ModelRecipeError(f"--layers {num_layers!r} must be a whole number of at least 1")
    if not isinstance(seed, int) or seed < 0:
        raise ModelRecipeError(f"--seed {seed!r} must be a whole number of at least 0")


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """The experts of one layer; every layer of the model has the same."""

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int  # of one expert


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """Everything that decides the bytes of a model folder; sizes are in elements if the name has no unit."""

    arch: str
    preset: str
    dtype: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int  # of the dense MLP; unused by a layer that has experts
    vocab_size: int  # equals the number of tokens of the tokenizer, so each id decodes
    experts: ExpertShape | None = None
    seed: int = 0
    max_position_tokens: int = 8192

    def __post_init__(self) -> None:
        check_choices(self.dtype, self.num_layers, self.seed)

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data, as it is written to recipe.json."""
        return asdict(self)


PRESETS: Mapping[tuple[str, str], ModelRecipe] = MappingProxyType(
    {
        (recipe.arch, recipe.preset): recipe
        for recipe in (
            ModelRecipe(
                arch="qwen3_moe",
                preset="tiny",
                dtype="float32",
                num_layers=8,
                hidden_size=128,
                num_heads=4,
                num_kv_heads=2,
                head_size=32,
                intermediate_size=256,
                vocab_size=1024,
                experts=ExpertShape(num_experts=16, num_experts_per_token=4, intermediate_size=64),
            ),
            ModelRecipe(
                arch="qwen3_moe",
                preset="demo",
                dtype="bfloat16",
                num_layers=5,
                hidden_size=1024,
                num_heads=48,
                num_kv_heads=2,
                head_size=128,
                intermediate_size=2048,
                vocab_size=2048,
                experts=ExpertShape(num_experts=64, num_experts_per_token=4, intermediate_size=1024),
            ),
            ModelRecipe(
                arch="qwen3_moe",
                preset="bench",
                dtype="bfloat16",
                num_layers=8,
                hidden_size=512,
                num_heads=8,
                num_kv_heads=2,
                head_size=64,
                intermediate_size=1024,
                vocab_size=2048,
                experts=ExpertShape(num_experts=32, num_experts_per_token=2, intermediate_size=512),
            ),
            ModelRecipe(
                arch="qwen3_moe",
                preset="bench-few-experts",
                dtype="bfloat16",
                num_layers=8,
                hidden_size=512,
                num_heads=8,
                num_kv_heads=2,
                head_size=64,
                intermediate_size=1024,
                vocab_size=2048,
                experts=ExpertShape(num_experts=16, num_experts_per_token=2, intermediate_size=512),
            ),
            ModelRecipe(
                arch="llama",
                preset="tiny",
                dtype="float32",
                num_layers=7,
                hidden_size=128,
                num_heads=4,
                num_kv_heads=2,
                head_size=32,
                intermediate_size=256,
                vocab_size=1024,
            ),
            ModelRecipe(
                arch="llama",
                preset="demo",
                dtype="bfloat16",
                num_layers=21,
                hidden_size=1024,
                num_heads=16,
                num_kv_heads=8,
                head_size=64,
                intermediate_size=3584,
                vocab_size=2048,
            ),
            ModelRecipe(
                arch="llama",
                preset="bench",
                dtype="bfloat16",
                num_layers=8,
                hidden_size=768,
                num_heads=12,
                num_kv_heads=4,
                head_size=64,
                intermediate_size=3072,
                vocab_size=2048,
            ),
        )
    }
)
