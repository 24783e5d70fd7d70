"""The model of `scripts/bench-images`."""

from __future__ import annotations

from dataclasses import replace

from sglang_layered_lab.models.catalogue import find_recipe
from sglang_layered_lab.models.recipe import FamilyRecipe


def study_recipe() -> FamilyRecipe:
    """A Qwen3-VL-MoE whose encoder takes about as long for an image as its layers for the image's tokens."""
    recipe = find_recipe("qwen3_vl_moe", "tiny", num_layers=8)
    assert isinstance(recipe, FamilyRecipe)
    text = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
    text |= {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 256}
    rotary = dict(recipe.fields["rope_parameters"]) | {"mrope_section": [12, 10, 10]}
    vision = {"hidden_size": 384, "num_heads": 6, "intermediate_size": 768, "out_hidden_size": 512}
    return replace(
        recipe,
        preset="images",
        fields=dict(recipe.fields) | text | {"rope_parameters": rotary},
        around=dict(recipe.around) | {"vision_config": dict(recipe.around["vision_config"]) | vision},
    )
