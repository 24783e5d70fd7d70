"""Folders with a config.json and no weights, of families that layered mode refuses, and of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "num_hidden_layers": 8,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
LATENT = {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32}
QWEN3_MOE = SIZES | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
KIMI_LAYERS = {
    "kda_layers": [1, 2, 3, 5, 6, 7],
    "full_attn_layers": [4, 8],
    "head_dim": 32,
    "num_heads": 4,
    "short_conv_kernel_size": 4,
}
JET_BLOCK = {
    "mode": "chunk",
    "expand_v": 2,
    "num_heads": 4,
    "head_dim": 32,
    "conv_size": 4,
    "norm_eps": "1e-5",
    "dconv_generator_reduction": 8,
    "dconv_implementation": "triton",
}
GRANITE = {"mamba_n_heads": 4, "mamba_d_head": 64, "mamba_expand": 2}

# By architecture: model_type and what the family's configuration has besides SIZES.
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3NextForCausalLM": ("qwen3_next", {}),
    "Qwen3_5MoeForCausalLM": ("qwen3_5_moe_text", {}),
    "KimiLinearForCausalLM": ("kimi_linear", {"linear_attn_config": KIMI_LAYERS, **LATENT}),
    "KimiK3ForConditionalGeneration": (
        "kimi_k3",
        {
            "text_config": SIZES
            | {"model_type": "kimi_linear", "linear_attn_config": KIMI_LAYERS, "attn_res_block_size": 3}
            | LATENT
        },
    ),
    "Lfm2ForCausalLM": ("lfm2", {"layer_types": ["conv", "conv", "full_attention", "conv"] * 2}),
    "Lfm2MoeForCausalLM": ("lfm2_moe", {"layer_types": ["conv", "conv", "full_attention", "conv"] * 2}),
    "BailingMoeV2_5ForCausalLM": ("bailing_hybrid", {}),
    "NemotronHForCausalLM": ("nemotron_h", {"hybrid_override_pattern": "M-M*M-M-"}),
    "FalconH1ForCausalLM": ("falcon_h1", {}),
    "GraniteMoeHybridForCausalLM": (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"] * 4, **GRANITE},
    ),
    "JetNemotronForCausalLM": (
        "jet_nemotron",
        {"layer_types": ["jet", "attn"] * 4, "efficient_attention_config": {"jet": JET_BLOCK}},
    ),
    "ZayaForCausalLM": ("zaya", {}),
}


def model_folder(folder: Path, config: dict[str, Any], **files: object) -> Path:
    """Write config.json and further JSON files, named without their ending."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def recurrent(architecture: str) -> dict[str, Any]:
    """The configuration of a family with recurrent layers."""
    model_type, fields = RECURRENT[architecture]
    sizes = {} if "text_config" in fields else SIZES
    return sizes | {"architectures": [architecture], "model_type": model_type} | fields
