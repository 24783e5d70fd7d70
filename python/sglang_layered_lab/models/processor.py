"""What a server reads beside the tokenizer of a multimodal model: how an image becomes patches and tokens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_layered_lab.models.recipe import Recipe

# The names by which transformers' processor of this family asks the tokenizer for its ids.
TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
PATCHES = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
ONE_TOKEN_PIXELS = (PATCHES["patch_size"] * PATCHES["merge_size"]) ** 2
MOST_TOKENS = 256
FILES = {
    "preprocessor_config.json": "image_processor_type Qwen2VLImageProcessor",
    "video_preprocessor_config.json": "video_processor_type Qwen3VLVideoProcessor",
}


def around_of(recipe: Recipe) -> Mapping[str, Any]:
    """The config around that of the language model; empty for a model of text."""
    around: Mapping[str, Any] = getattr(recipe, "around", {})
    return around


def named_tokens(recipe: Recipe) -> dict[int, str]:
    """Ids that the tokenizer must give to these names."""
    around = around_of(recipe)
    return {around[key]: token for key, token in TOKENS.items() if key in around}


def write_processor(recipe: Recipe, folder: Path) -> None:
    """Write the image's and the video's file; nothing for a model of text."""
    if not around_of(recipe):
        return
    sizes = {"size": {"shortest_edge": ONE_TOKEN_PIXELS, "longest_edge": MOST_TOKENS * ONE_TOKEN_PIXELS}}
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for name, kind in FILES.items():
        key, value = kind.split()
        content = {key: value, "processor_class": "Qwen3VLProcessor", **PATCHES, **sizes, **colours}
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
