"""Makes a random model one whose next tokens a small draft can guess, and still not without its layers.

In a random model every layer changes everything, and no draft is ever right. Here a row is the sum of three:

* its token's embedding, in the first columns;
* in the last ones, which embeddings leave free, what one layer's attention finds, an average of the context,
  which changes little from one token to the next. A draft knows it from the hidden state of the token before;
* what all layers add, as much less as it takes for a draft to be right about every other time.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from sglang_layered_lab.models.checkpoint import write_file

AVERAGING_LAYER = 1  # GPT-OSS has a window in layer 0
LAYER_GAIN = 0.01
AVERAGE_GAIN = 0.6
AVERAGE_SHARE = 4  # one column in so many is the average's
RESIDUAL = re.compile(r"\b(o_proj|down_proj)(_bias|\.weight|\.bias)?$")  # what adds to the rows
EMBEDDING = "model.embed_tokens.weight"


def average_columns(hidden_size: int) -> slice:
    """The columns of a row that hold the average."""
    return slice(hidden_size - hidden_size // AVERAGE_SHARE, hidden_size)


def make_draftable(folder: Path) -> None:
    """Rewrite the weights of a model folder, of one file in float32, in place."""
    path = folder / "model.safetensors"
    weights, config = load_file(path), json.loads((folder / "config.json").read_text(encoding="utf-8"))
    of_experts = 1 / (config.get("routed_scaling_factor") or 1)
    average = average_columns(weights[EMBEDDING].shape[1])
    attention = f"model.layers.{AVERAGING_LAYER}.self_attn."
    for name, weight in weights.items():
        in_attention = name.removeprefix(attention) if name.startswith(attention) else ""
        if name == EMBEDDING:
            weight[:, average] = 0
        elif in_attention.startswith(("q_proj", "q_b_proj")) or in_attention.endswith("bias"):
            weight.zero_()  # all scores are equal: an average
        elif in_attention == "o_proj.weight":
            weight[: average.start] = 0
            weight *= AVERAGE_GAIN
        elif RESIDUAL.search(name):
            weight *= LAYER_GAIN * (of_experts if ".experts." in name else 1)
    write_file(
        {name: weight.contiguous() for name, weight in weights.items()}, path, like=folder / "config.json"
    )


def rms(embedding: torch.Tensor) -> float:
    """Root mean square of rows [tokens, hidden]."""
    return float(embedding.square().mean().sqrt())
