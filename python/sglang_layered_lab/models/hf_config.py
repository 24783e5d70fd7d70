"""A recipe as the JSON files that transformers and SGLang read: config.json and generation_config.json."""

from __future__ import annotations

from typing import Any

from sglang_layered_lab.models.recipe import ModelRecipe

# The first ids of the vocabulary, in this order; the chat template uses the same names.
PAD_TOKEN, START_TOKEN, END_TOKEN = SPECIAL_TOKENS = ("<|pad|>", "<|start|>", "<|end|>")
PAD_ID, START_ID, END_ID = range(len(SPECIAL_TOKENS))


def model_config(recipe: ModelRecipe) -> dict[str, Any]:
    """Return the contents of config.json."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if recipe.experts is None else "Qwen3MoeForCausalLM"],
        "model_type": recipe.arch,
        "dtype": recipe.dtype,
        "vocab_size": recipe.vocab_size,
        "hidden_size": recipe.hidden_size,
        "intermediate_size": recipe.intermediate_size,
        "num_hidden_layers": recipe.num_layers,
        "num_attention_heads": recipe.num_heads,
        "num_key_value_heads": recipe.num_kv_heads,
        "head_dim": recipe.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": recipe.max_position_tokens,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
    }
    return config | _family_fields(recipe)


def _family_fields(recipe: ModelRecipe) -> dict[str, Any]:
    if recipe.experts is None:
        return {"mlp_bias": False}
    return {
        "num_experts": recipe.experts.num_experts,
        "num_experts_per_tok": recipe.experts.num_experts_per_token,
        "moe_intermediate_size": recipe.experts.intermediate_size,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
    }


def generation_config() -> dict[str, Any]:
    """Return the contents of generation_config.json."""
    return {"eos_token_id": [END_ID], "pad_token_id": PAD_ID, "do_sample": False}


def tokenizer_config(max_position_tokens: int) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END_TOKEN,
        "pad_token": PAD_TOKEN,
        "additional_special_tokens": [START_TOKEN],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_position_tokens,
    }
