"""The table of docs/models.md, from what was seen of each family.

python test/models/families_table.py RESULTS.json prints it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Name, and what of the family the tiny model has.
FAMILIES_SHOWN: Mapping[str, tuple[str, str]] = {
    "qwen3_moe": ("Qwen3-MoE", "norms on queries and keys"),
    "qwen2_moe": ("Qwen2-MoE", "shared expert with a gate, biases"),
    "gpt_oss": ("GPT-OSS", "attention sinks, sliding and full attention, biases in experts and router"),
    "mixtral": ("Mixtral", "2 of 8 experts"),
    "deepseek_v2": ("DeepSeek-V2", "latent attention, shared expert, 2 dense layers first"),
    "deepseek_v3": ("DeepSeek-V3", "as V2, with compressed queries, grouped top-k and a router bias"),
    "glm4_moe": ("GLM-4.x-MoE", "partial rotary embedding, router bias, 1 dense layer first"),
    "exaone_moe": (
        "EXAONE-MoE",
        "experts in every second layer, a router bias, rotary embedding in two of three layers",
    ),
    "qwen3_vl_moe": ("Qwen3-VL-MoE, text", "a vision encoder, three positions a token"),
    "olmoe": ("OLMoE", "norms on queries and keys"),
    "ernie4_5_moe": ("ERNIE 4.5", "a shared expert, a router bias, 1 dense layer first"),
    "llama4": (
        "Llama 4, text",
        "experts in every second layer that are chosen one a token, a shared expert, rotary embedding in"
        " three of four layers",
    ),
    "llama": ("Llama", "dense"),
    "qwen3": ("Qwen3", "dense"),
    "mimo": ("MiMo", "dense, biases"),
    "gemma2": ("Gemma 2", "dense, sliding and full attention, soft caps, tied embeddings"),
    "gemma3": ("Gemma 3", "dense, 5 sliding layers to 1 full, tied embeddings"),
    "gemma3_mm": ("Gemma 3, multimodal, text", "a vision encoder, positions counted from 1"),
    "gemma4": (
        "Gemma 4, dense",
        "an input of its own for each layer, sliding and full attention, keys and values that layers share",
    ),
    "gemma4_moe": (
        "Gemma 4 MoE",
        "experts beside a dense MLP in every layer, sliding and full attention, values that are keys",
    ),
    "qwen3_next": (
        "Qwen3-Next",
        "gated delta nets, full attention in every fourth layer, gates on attention and shared expert",
    ),
    "qwen3_5_moe": (
        "Qwen3.5-MoE, text",
        "gated delta nets, full attention in every fourth layer, a vision encoder, three positions a token",
    ),
    "kimi_linear": (
        "Kimi-Linear",
        "Kimi Delta Attention, latent attention without rotary embedding in every fourth layer and the last,"
        " a router bias, a shared expert, 1 dense layer first",
    ),
    "kimi_k3": (
        "Kimi-K3, text",
        "as Kimi-Linear, with bounded gates, compressed queries, gates of attention's output, experts in a"
        " smaller space, residuals weighed by blocks of 3 layers, a vision tower",
    ),
    "nemotron_h": (
        "Nemotron-H",
        "blocks of one mixer each: Mamba2, attention without positions, experts without gates in a"
        " smaller space beside a shared one, a dense one",
    ),
    "lfm2_moe": (
        "LFM2-MoE",
        "short convolutions, full attention in two layers, a router bias, 1 dense layer first",
    ),
    "minimax_m3": (
        "MiniMax-M3, text",
        "attention to blocks of tokens that an indexer chooses in five layers, a vision encoder, a router"
        " bias, a shared expert, 1 dense layer first",
    ),
    "lfm2": ("LFM2", "dense, short convolutions, full attention in two layers, tied embeddings"),
}
# Families that transformers does not know: the oracle in Hugging Face's place is the model's definition.
DEFINED = dict.fromkeys(("kimi_k3", "kimi_linear"), "yes, its definition's")
RANGES = {"PipelineRanges": "pipeline stages", "ListRanges": "list of layers"}
HEAD = (
    "| family | SGLang class | what the tiny model has | layers with experts | layers run as"
    " | tokens equal SGLang's | tokens equal Hugging Face's |"
)


def families_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown; one row a family, in the order above."""
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    lines += [_row(*FAMILIES_SHOWN[arch], results[arch]) for arch in FAMILIES_SHOWN]
    return "\n".join(lines)


def _row(name: str, special: str, seen: Mapping[str, Any]) -> str:
    if "error" in seen:
        return f"| {name} | | {special} | | | **no**: {seen['error'].splitlines()[-1]} | |"
    cells = [
        name,
        f"`{seen['model_class']}`",
        special,
        f"{seen['expert_layers']} of {seen['num_layers']}",
        RANGES[seen["ranges"]],
        _all_equal(seen["equal_stock"]),
        DEFINED.get(seen["arch"], "yes") if seen["equal_hugging_face"] else "**no**",
    ]
    return f"| {' | '.join(cells)} |"


def _all_equal(runs: Mapping[str, bool]) -> str:
    wrong = [name for name, equal in runs.items() if not equal]
    return "yes" if not wrong else f"**no**: {', '.join(wrong)}"


if __name__ == "__main__":
    print(families_table(json.loads(Path(sys.argv[1]).read_text())))
