"""The tensors of a recipe under their Hugging Face names, and how they are cut into files. Knows no torch.

The spread of each matrix is chosen so that greedy output is not one repeated token: with the usual
initialisation a random model repeats itself, and a wrong KV cache or a skipped layer would go unseen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sglang_layered_lab.models.recipe import DTYPE_BYTES, ExpertShape, ModelRecipe

# Standard deviation of a matrix times sqrt(fan-in): one value, so that layers of any width have the same
# gain. It makes the standard deviation 0.12 at width 128.
MATRIX_GAIN = 0.12 * math.sqrt(128)
# Small beside the output of a layer: what comes out depends on the context more than on the last token.
EMBEDDING_STD = 0.15
# Above 1, so that attention is peaked instead of an average over all positions.
QK_NORM_WEIGHT = 1.7


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: independent normal values around `mean`."""

    name: str
    shape: tuple[int, ...]
    std: float = 0.0
    mean: float = 0.0

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Shard:
    """The tensors of one file."""

    tensors: tuple[TensorSpec, ...]
    num_bytes: int


def _matrix(name: str, rows: int, fan_in: int) -> TensorSpec:
    return TensorSpec(f"{name}.weight", (rows, fan_in), std=MATRIX_GAIN / math.sqrt(fan_in))


def _norm(name: str, size: int, value: float = 1.0) -> TensorSpec:
    return TensorSpec(f"{name}.weight", (size,), mean=value)


def _gated_mlp(prefix: str, hidden_size: int, intermediate_size: int) -> Iterator[TensorSpec]:
    yield _matrix(f"{prefix}.gate_proj", intermediate_size, hidden_size)
    yield _matrix(f"{prefix}.up_proj", intermediate_size, hidden_size)
    yield _matrix(f"{prefix}.down_proj", hidden_size, intermediate_size)


def _attention(prefix: str, recipe: ModelRecipe) -> Iterator[TensorSpec]:
    query_size = recipe.num_heads * recipe.head_size
    kv_size = recipe.num_kv_heads * recipe.head_size
    yield _matrix(f"{prefix}.q_proj", query_size, recipe.hidden_size)
    yield _matrix(f"{prefix}.k_proj", kv_size, recipe.hidden_size)
    yield _matrix(f"{prefix}.v_proj", kv_size, recipe.hidden_size)
    yield _matrix(f"{prefix}.o_proj", recipe.hidden_size, query_size)
    if recipe.arch == "qwen3_moe":
        yield _norm(f"{prefix}.q_norm", recipe.head_size, QK_NORM_WEIGHT)
        yield _norm(f"{prefix}.k_norm", recipe.head_size, QK_NORM_WEIGHT)


def _experts(prefix: str, hidden_size: int, experts: ExpertShape) -> Iterator[TensorSpec]:
    yield _matrix(f"{prefix}.gate", experts.num_experts, hidden_size)
    for index in range(experts.num_experts):
        yield from _gated_mlp(f"{prefix}.experts.{index}", hidden_size, experts.intermediate_size)


def _layer(prefix: str, recipe: ModelRecipe) -> Iterator[TensorSpec]:
    yield _norm(f"{prefix}.input_layernorm", recipe.hidden_size)
    yield from _attention(f"{prefix}.self_attn", recipe)
    yield _norm(f"{prefix}.post_attention_layernorm", recipe.hidden_size)
    if recipe.experts is None:
        yield from _gated_mlp(f"{prefix}.mlp", recipe.hidden_size, recipe.intermediate_size)
    else:
        yield from _experts(f"{prefix}.mlp", recipe.hidden_size, recipe.experts)


def list_tensors(recipe: ModelRecipe) -> Iterator[TensorSpec]:
    """Yield every tensor of the model once, layer by layer."""
    embedding = (recipe.vocab_size, recipe.hidden_size)
    yield TensorSpec("model.embed_tokens.weight", embedding, std=EMBEDDING_STD)
    for index in range(recipe.num_layers):
        yield from _layer(f"model.layers.{index}", recipe)
    yield _norm("model.norm", recipe.hidden_size)
    yield _matrix("lm_head", recipe.vocab_size, recipe.hidden_size)


def count_parameters(recipe: ModelRecipe) -> int:
    """Count the parameters of the model."""
    return sum(tensor.num_elements for tensor in list_tensors(recipe))


def count_bytes(recipe: ModelRecipe) -> int:
    """Count the bytes of all weights, without the headers of the files."""
    return count_parameters(recipe) * DTYPE_BYTES[recipe.dtype]


def plan_shards(tensors: Iterable[TensorSpec], element_bytes: int, max_shard_bytes: int) -> tuple[Shard, ...]:
    """Cut the tensors, in order, into files of at most `max_shard_bytes` (or of one tensor)."""
    shards: list[Shard] = []
    current: list[TensorSpec] = []
    current_bytes = 0
    for tensor in tensors:
        num_bytes = tensor.num_elements * element_bytes
        if current and current_bytes + num_bytes > max_shard_bytes:
            shards.append(Shard(tuple(current), current_bytes))
            current, current_bytes = [], 0
        current.append(tensor)
        current_bytes += num_bytes
    if current:
        shards.append(Shard(tuple(current), current_bytes))
    return tuple(shards)
