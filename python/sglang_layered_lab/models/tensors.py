"""The tensors of a recipe under their Hugging Face names, and how their values are spread. Knows no torch.

The spread of each matrix is chosen so that greedy output is not one repeated token: with the usual
initialisation a random model repeats itself, and a wrong KV cache or a skipped layer would go unseen.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from sglang_layered_lab.models.kimi import kimi_k3_tensors, kimi_tensors
from sglang_layered_lab.models.recipe import FamilyRecipe, ModelRecipe, Recipe

# Standard deviation of a matrix times sqrt(fan-in): one value, so that layers of any width have the same
# gain. It makes the standard deviation 0.12 at width 128.
MATRIX_GAIN = 0.12 * math.sqrt(128)
# Small beside the output of a layer: what comes out depends on the context more than on the last token.
EMBEDDING_STD = 0.15
# Above 1, so that attention is peaked instead of an average over all positions.
QK_NORM_WEIGHT = 1.7
QK_NORMS = tuple(f"{part}_{norm}.weight" for part in "qk" for norm in ("norm", "layernorm"))
BIAS_STD = 0.05
ROUTER_BIAS_STD = 0.02  # beside scores between 0 and 1 that choose the experts
SINK_STD = 1.0
SCALE_STD = 0.2  # of what scales a router's input and its experts' outputs
# Log of a recurrent head's decay a token: states that remember some ten tokens or many, so that one that
# starts from elsewhere is seen.
DECAY_MEAN, DECAY_STD = -2.5, 1.0
# The same where a gate is bounded: what a sigmoid makes of bias and rate is a share of the fastest decay.
BOUNDED_GATES = ("kimi_k3",)
BOUNDED_MEANS = {"A_log": 0.0, "dt_bias": -3.0}
TRANSPOSED_EXPERTS = ("gpt_oss",)  # families that store an expert's matrices as [inputs, outputs]
# Families that transformers does not know: names and shapes of all tensors.
LAYOUTS: Mapping[str, Callable[[FamilyRecipe], Iterator[tuple[str, tuple[int, ...]]]]] = {
    "kimi_linear": kimi_tensors,
    "kimi_k3": kimi_k3_tensors,
}


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


def tensor_spec(recipe: Recipe, name: str, shape: tuple[int, ...]) -> TensorSpec:
    """How the values of one tensor are spread, by its name."""
    family = recipe if isinstance(recipe, FamilyRecipe) else None
    if "embed_tokens" in name or name.endswith("model.embeddings.weight"):
        return TensorSpec(name, shape, std=family.embedding_std if family else EMBEDDING_STD)
    gate = name.rpartition(".")[2]
    if recipe.arch in BOUNDED_GATES and gate in BOUNDED_MEANS:
        return TensorSpec(name, shape, mean=BOUNDED_MEANS[gate], std=DECAY_STD)
    if name.endswith("A_log"):
        return TensorSpec(name, shape, mean=DECAY_MEAN, std=DECAY_STD)
    if name.endswith("linear_attn.norm.weight") or (".visual." in name and "norm" in name):
        # These scale by themselves in every family; by zero, and nothing of an image would come through.
        return TensorSpec(name, shape, mean=1.0)
    if "norm" in name:
        sharper = QK_NORM_WEIGHT - 1 if name.endswith(QK_NORMS) else 0
        return TensorSpec(name, shape, mean=(family.norm_weight if family else 1.0) + sharper)
    if name.endswith(("router.scale", "per_expert_scale")):
        return TensorSpec(name, shape, std=SCALE_STD, mean=1.0)
    for part, std in (("correction_bias", ROUTER_BIAS_STD), ("sinks", SINK_STD), ("bias", BIAS_STD)):
        if part in name:
            return TensorSpec(name, shape, std=std)
    fan_in = shape[-2 if recipe.arch in TRANSPOSED_EXPERTS and len(shape) == 3 else -1]
    return TensorSpec(name, shape, std=MATRIX_GAIN / fan_in**0.5)


def _gated_mlp(hidden_size: int, intermediate_size: int) -> dict[str, tuple[int, ...]]:
    return {
        "gate_proj": (intermediate_size, hidden_size),
        "up_proj": (intermediate_size, hidden_size),
        "down_proj": (hidden_size, intermediate_size),
    }


def _layer(recipe: ModelRecipe) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a layer's tensors, in the order of the files."""
    hidden_size, head_size, experts = recipe.hidden_size, recipe.head_size, recipe.experts
    query_size, kv_size = recipe.num_heads * head_size, recipe.num_kv_heads * head_size
    yield "input_layernorm", (hidden_size,)
    for part, size in (("q", query_size), ("k", kv_size), ("v", kv_size)):
        yield f"self_attn.{part}_proj", (size, hidden_size)
    yield "self_attn.o_proj", (hidden_size, query_size)
    if recipe.arch == "qwen3_moe":
        yield "self_attn.q_norm", (head_size,)
        yield "self_attn.k_norm", (head_size,)
    yield "post_attention_layernorm", (hidden_size,)
    if experts is None:
        for name, shape in _gated_mlp(hidden_size, recipe.intermediate_size).items():
            yield f"mlp.{name}", shape
        return
    yield "mlp.gate", (experts.num_experts, hidden_size)
    for index in range(experts.num_experts):
        for name, shape in _gated_mlp(hidden_size, experts.intermediate_size).items():
            yield f"mlp.experts.{index}.{name}", shape


def is_of_transformers(recipe: Recipe) -> TypeGuard[FamilyRecipe]:
    """Whether transformers lays out the tensors; this package does it otherwise."""
    return isinstance(recipe, FamilyRecipe) and recipe.arch not in LAYOUTS


def list_tensors(recipe: Recipe) -> Iterator[TensorSpec]:
    """Yield every tensor of a model that is laid out here once, layer by layer."""
    if isinstance(recipe, FamilyRecipe):
        yield from (tensor_spec(recipe, name, shape) for name, shape in LAYOUTS[recipe.arch](recipe))
        return
    vocabulary = (recipe.vocab_size, recipe.hidden_size)
    yield tensor_spec(recipe, "model.embed_tokens.weight", vocabulary)
    for index in range(recipe.num_layers):
        for name, shape in _layer(recipe):
            yield tensor_spec(recipe, f"model.layers.{index}.{name}.weight", shape)
    yield tensor_spec(recipe, "model.norm.weight", (recipe.hidden_size,))
    yield tensor_spec(recipe, "lm_head.weight", vocabulary)
