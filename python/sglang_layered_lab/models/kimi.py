"""The tensors of Kimi-Linear under the names of its released files; transformers does not know this family.

Most layers have Kimi Delta Attention (KDA), the others latent attention without a rotary embedding.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sglang_layered_lab.models.recipe import FamilyRecipe

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def kimi_tensors(recipe: FamilyRecipe) -> Shapes:
    """Name and shape of every tensor, layer by layer."""
    fields = recipe.fields
    hidden_size = fields["hidden_size"]
    yield "model.embed_tokens.weight", (recipe.vocab_size, hidden_size)
    for index in range(recipe.num_layers):
        is_delta = index + 1 in fields["linear_attn_config"]["kda_layers"]  # counted from 1
        for name, shape in _delta_attention(fields) if is_delta else _latent_attention(fields):
            yield f"model.layers.{index}.self_attn.{name}", shape
        has_experts = index >= fields["first_k_dense_replace"]
        for name, shape in _experts(fields) if has_experts else _mlp(fields, "mlp", "intermediate_size"):
            yield f"model.layers.{index}.{name}", shape
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{index}.{norm}.weight", (hidden_size,)
    yield "model.norm.weight", (hidden_size,)
    yield "lm_head.weight", (recipe.vocab_size, hidden_size)


def _delta_attention(fields: Mapping[str, Any]) -> Shapes:
    linear, hidden_size = fields["linear_attn_config"], fields["hidden_size"]
    num_heads, head_size = linear["num_heads"], linear["head_dim"]
    inner_size = num_heads * head_size
    for part in ("q", "k", "v"):
        yield f"{part}_proj.weight", (inner_size, hidden_size)
        yield f"{part}_conv1d.weight", (inner_size, 1, linear["short_conv_kernel_size"])
    for gate in ("f", "g"):  # of the state and of the output
        yield f"{gate}_a_proj.weight", (head_size, hidden_size)
        yield f"{gate}_b_proj.weight", (inner_size, head_size)
    yield "b_proj.weight", (num_heads, hidden_size)
    yield "A_log", (1, 1, num_heads, 1)
    yield "dt_bias", (inner_size,)
    yield "o_norm.weight", (head_size,)
    yield "o_proj.weight", (hidden_size, inner_size)


def _latent_attention(fields: Mapping[str, Any]) -> Shapes:
    num_heads, hidden_size, rank = (
        fields[name] for name in ("num_attention_heads", "hidden_size", "kv_lora_rank")
    )
    own, shared, value = (fields[name] for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    yield "q_proj.weight", (num_heads * (own + shared), hidden_size)
    yield "kv_a_proj_with_mqa.weight", (rank + shared, hidden_size)
    yield "kv_a_layernorm.weight", (rank,)
    yield "kv_b_proj.weight", (num_heads * (own + value), rank)
    yield "o_proj.weight", (hidden_size, num_heads * value)


def _experts(fields: Mapping[str, Any]) -> Shapes:
    hidden_size, inner_size = fields["hidden_size"], fields["moe_intermediate_size"]
    yield "block_sparse_moe.gate.weight", (fields["num_experts"], hidden_size)
    yield "block_sparse_moe.gate.e_score_correction_bias", (fields["num_experts"],)
    for expert in range(fields["num_experts"]):
        for part, shape in (
            ("w1", (inner_size, hidden_size)),
            ("w2", (hidden_size, inner_size)),
            ("w3", (inner_size, hidden_size)),
        ):
            yield f"block_sparse_moe.experts.{expert}.{part}.weight", shape
    yield from _mlp(fields, "block_sparse_moe.shared_experts", "moe_intermediate_size")


def _mlp(fields: Mapping[str, Any], name: str, size: str) -> Shapes:
    hidden_size, inner_size = fields["hidden_size"], fields[size]
    yield f"{name}.gate_proj.weight", (inner_size, hidden_size)
    yield f"{name}.up_proj.weight", (inner_size, hidden_size)
    yield f"{name}.down_proj.weight", (hidden_size, inner_size)
