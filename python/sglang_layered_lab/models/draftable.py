"""Makes a random model one whose next tokens a small draft can guess, and still not without its layers.

In a random model every layer changes everything, and no draft is ever right. Here a row is the sum of three:

* its token's embedding, in the first columns;
* in the last ones, which embeddings leave free, what one layer's attention finds, an average of the context,
  which changes little from one token to the next. A draft knows it from the hidden state of the token before;
* what all layers add, as much less as it takes for a draft to be right about every other time.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from sglang_layered_lab.models.checkpoint import write_file

FIRST_AVERAGING_LAYER = 1  # GPT-OSS has a window in layer 0
LAYER_GAIN = 0.01
AVERAGE_GAIN = 0.6
AVERAGE_SHARE = 4  # one column in so many is the average's
RESIDUAL = re.compile(r"\b(o_proj|out_proj|down_proj)(_bias|\.weight|\.bias)?$")  # what adds to the rows
EMBEDDING = re.compile(r"\.embed(_tokens|dings)\.weight$")
ATTENTION = re.compile(r"(.*\.layers\.(\d+)\.(self_attn|mixer)\.)o_proj\.weight$")


def average_columns(hidden_size: int) -> slice:
    """The columns of a row that hold the average."""
    return slice(hidden_size - hidden_size // AVERAGE_SHARE, hidden_size)


def embedding_of(names: Iterable[str]) -> str:
    """The name of the embeddings among those of a model's tensors."""
    return next(name for name in names if EMBEDDING.search(name))


def averaging_of(names: Iterable[str]) -> str:
    """Beginning of the names of the attention that averages: of the first layer with any, but not layer 0."""
    found = [match for name in names if (match := ATTENTION.match(name)) is not None]
    layers = {int(match[2]): match[1] for match in found if int(match[2]) >= FIRST_AVERAGING_LAYER}
    return layers[min(layers)]


def make_draftable(folder: Path) -> None:
    """Rewrite the weights of a model folder, of one file in float32, in place."""
    path = folder / "model.safetensors"
    weights, config = load_file(path), json.loads((folder / "config.json").read_text(encoding="utf-8"))
    of_experts = 1 / (config.get("routed_scaling_factor") or 1)
    embedding, attention = embedding_of(weights), averaging_of(weights)
    average = average_columns(weights[embedding].shape[1])
    for name, weight in weights.items():
        in_attention = name.removeprefix(attention) if name.startswith(attention) else ""
        if name == embedding:
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
