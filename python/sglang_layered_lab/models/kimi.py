"""The tensors of Kimi-Linear and Kimi-K3 under the names of their released files; transformers knows neither.

Most layers have Kimi Delta Attention (KDA), the others latent attention without a rotary embedding. K3 has
besides, as its configuration says, compressed queries, gates of attention's output, experts in a smaller
space, and residuals that a layer weighs by blocks.
"""

import math
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


def kimi_k3_tensors(recipe: FamilyRecipe) -> Shapes:
    """As of Kimi-Linear, inside of a model with a vision tower."""
    vision, hidden_size = recipe.around["vision_config"], recipe.fields["hidden_size"]
    for name, shape in kimi_tensors(recipe):
        yield f"language_model.{name}", shape
    for index in range(recipe.num_layers):
        for part in ("self_attention", "mlp"):
            at = f"language_model.model.layers.{index}.{part}_res"
            yield from _weighing(at, hidden_size)
    yield from _weighing("language_model.model.output_attn_res", hidden_size)
    yield from _vision(vision, hidden_size)


def _weighing(name: str, hidden_size: int) -> Shapes:
    yield f"{name}_norm.weight", (hidden_size,)
    yield f"{name}_proj.weight", (1, hidden_size)


def _vision(vision: Mapping[str, Any], text_size: int) -> Shapes:
    size, inner_size, patch = vision["vt_hidden_size"], vision["vt_intermediate_size"], vision["patch_size"]
    grid = (vision["init_pos_emb_height"], vision["init_pos_emb_width"])
    merged_size = size * math.prod(vision["merge_kernel_size"])
    yield "vision_tower.patch_embed.proj.weight", (size, 3, patch, patch)
    yield "vision_tower.patch_embed.pos_emb.weight", (*grid, size)
    for index in range(vision["vt_num_hidden_layers"]):
        at = f"vision_tower.encoder.blocks.{index}"
        yield f"{at}.wqkv.weight", (3 * vision["qkv_hidden_size"], size)
        yield f"{at}.wo.weight", (size, vision["qkv_hidden_size"])
        yield f"{at}.mlp.fc0.weight", (inner_size, size)
        yield f"{at}.mlp.fc1.weight", (size, inner_size)
        yield f"{at}.norm0.weight", (size,)
        yield f"{at}.norm1.weight", (size,)
    yield "vision_tower.encoder.final_layernorm.weight", (size,)
    yield "mm_projector.proj.0.weight", (merged_size, merged_size)
    yield "mm_projector.proj.2.weight", (text_size, merged_size)
    yield "mm_projector.post_norm.weight", (text_size,)


def _delta_attention(fields: Mapping[str, Any]) -> Shapes:
    linear, hidden_size = fields["linear_attn_config"], fields["hidden_size"]
    num_heads, head_size = linear["num_heads"], linear["head_dim"]
    inner_size = num_heads * head_size
    for part in ("q", "k", "v"):
        yield f"{part}_proj.weight", (inner_size, hidden_size)
        yield f"{part}_conv1d.weight", (inner_size, 1, linear["short_conv_kernel_size"])
    has_wide_gate = linear.get("use_full_rank_gate", False)
    for gate in ("f",) if has_wide_gate else ("f", "g"):  # of the state and of the output
        yield f"{gate}_a_proj.weight", (head_size, hidden_size)
        yield f"{gate}_b_proj.weight", (inner_size, head_size)
    if has_wide_gate:
        yield "g_proj.weight", (inner_size, hidden_size)
    yield "b_proj.weight", (num_heads, hidden_size)
    # K3's files have one a channel of a head, of which the first are the heads'.
    yield "A_log", (head_size,) if has_wide_gate else (1, 1, num_heads, 1)
    yield "dt_bias", (inner_size,)
    yield "o_norm.weight", (head_size,)
    yield "o_proj.weight", (hidden_size, inner_size)


def _latent_attention(fields: Mapping[str, Any]) -> Shapes:
    num_heads, hidden_size, rank = (
        fields[name] for name in ("num_attention_heads", "hidden_size", "kv_lora_rank")
    )
    own, shared, value = (fields[name] for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    query_rank = fields.get("q_lora_rank")
    if query_rank is None:
        yield "q_proj.weight", (num_heads * (own + shared), hidden_size)
    else:
        yield "q_a_proj.weight", (query_rank, hidden_size)
        yield "q_a_layernorm.weight", (query_rank,)
        yield "q_b_proj.weight", (num_heads * (own + shared), query_rank)
    if fields.get("mla_use_output_gate"):
        yield "g_proj.weight", (num_heads * value, hidden_size)
    yield "kv_a_proj_with_mqa.weight", (rank + shared, hidden_size)
    yield "kv_a_layernorm.weight", (rank,)
    yield "kv_b_proj.weight", (num_heads * (own + value), rank)
    yield "o_proj.weight", (hidden_size, num_heads * value)


def _experts(fields: Mapping[str, Any]) -> Shapes:
    hidden_size, inner_size = fields["hidden_size"], fields["moe_intermediate_size"]
    yield "block_sparse_moe.gate.weight", (fields["num_experts"], hidden_size)
    yield "block_sparse_moe.gate.e_score_correction_bias", (fields["num_experts"],)
    small_size = fields.get("routed_expert_hidden_size")
    if small_size is not None:
        yield "block_sparse_moe.routed_expert_down_proj.weight", (small_size, hidden_size)
        yield "block_sparse_moe.routed_expert_norm.weight", (small_size,)
        yield "block_sparse_moe.routed_expert_up_proj.weight", (hidden_size, small_size)
        hidden_size = small_size
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
