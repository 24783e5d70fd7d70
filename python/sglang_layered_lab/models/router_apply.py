"""Put a RouterBias into the tensors of a model, in place: in a checkpoint's, in transformers' or in SGLang's.

It goes by the last word of a tensor's name, and by which side of a matrix is the residual stream: both are
the same for single experts, for transformers' stacked ones and for SGLang's fused projections.
"""

import re
from collections import Counter
from collections.abc import Mapping

import torch

from sglang_layered_lab.models.router_bias import Floats, RouterBias

KINDS: Mapping[str, str] = {
    # [..., out, residual]
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj"), "reader"),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "w13_weight"), "reader"),
    # [..., residual, in]
    **dict.fromkeys(("o_proj", "down_proj", "w2_weight"), "writer"),
    "gate": "router",
    "embed_tokens": "embedding",
    "lm_head": "head",
}
_LAYER = re.compile(r"\blayers\.(\d+)\.")


@torch.no_grad()
def apply_bias(
    parameters: Mapping[str, torch.Tensor], bias: RouterBias, *, first_token_id: int = 0
) -> Counter[str]:
    """Edit all or some of a model's tensors in place; a later bias with the same channels replaces this one.

    `first_token_id` is the id of the first row where ranks share the vocabulary. Returns how many tensors of
    each kind were edited: reader, writer, router, embedding, head.
    """
    edited: Counter[str] = Counter()
    for name, tensor in parameters.items():
        kind = kind_of(name)
        if kind is None:
            continue
        edited[kind] += 1
        if kind == "reader":
            tensor[..., bias.channels] = 0
        elif kind == "writer":
            tensor[..., bias.channels, :] = 0
        elif kind == "router":
            tensor[:, bias.channels] = torch.from_numpy(bias.router_columns(layer_of(name))).to(tensor)
        else:
            tensor[:, bias.channels] = _rows(_by_token(bias, kind), tensor, first_token_id)
    return edited


def kind_of(name: str) -> str | None:
    """Return how a tensor or module meets the residual stream, or None if nothing in it is to be edited."""
    return KINDS.get(name.removesuffix(".weight").rsplit(".", 1)[-1])


def layer_of(name: str) -> int:
    """Return the index of the layer in the name of a tensor or module."""
    found = _LAYER.search(name)
    if found is None:
        raise ValueError(f"{name} is in no layer")
    return int(found[1])


def _by_token(bias: RouterBias, kind: str) -> Floats:
    return bias.head_columns() if kind == "head" else bias.token_channels() * bias.channel_value


def _rows(values: Floats, tensor: torch.Tensor, first_token_id: int) -> torch.Tensor:
    """Cut out a rank's rows of [vocabulary, channels]; rows beyond the vocabulary are padding: zeros."""
    rows = torch.zeros((tensor.shape[0], values.shape[1]))
    present = torch.from_numpy(values[first_token_id : first_token_id + tensor.shape[0]])
    rows[: present.shape[0]] = present
    return rows.to(tensor)
