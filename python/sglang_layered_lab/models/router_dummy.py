"""Dummy weights that route as a RouterBias says.

SGLang gives all dummy tensors of one size the same numbers below 1e-3, norms and routers too: all layers
would choose alike, and nearly uniformly. Here embeddings, routers and the head are normal and norms are 1, so
that the residual stream stays a token's embedding and what a router reads of it is known: `router_calibrate`.
All other tensors stay as small as they were; they cost the same time.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import torch

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.router_apply import apply_bias, kind_of
from sglang_layered_lab.models.router_bias import RouterBias
from sglang_layered_lab.models.router_checkpoint import DUMMY, WEIGHTS
from sglang_layered_lab.models.router_topics import read_record

# Of a server's environment.
PACKAGE = {"SGLANG_EXTERNAL_MODEL_PACKAGE": "sglang_layered_lab.models.routed_dummy"}
FILLED = "Dummy weights with calibrated routers"  # begins the line in a server's log


def is_dummy(model_dir: Path) -> bool:
    """Whether a folder has a bias for dummy weights.

    Raises:
        ModelRecipeError: its record cannot be read.
    """
    return (read_record(model_dir) or {}).get(WEIGHTS) == DUMMY


def bias_of(model_dir: Path) -> RouterBias:
    """The bias in a folder that `calibrate-router --dummy` wrote.

    Raises:
        ModelRecipeError: it has none, or one for weights of its own.
    """
    record = read_record(model_dir) or {}
    if record.get(WEIGHTS) != DUMMY:
        raise ModelRecipeError(
            f"--model-path {model_dir} has no routers for dummy weights; make such a folder with"
            " sglang-layered calibrate-router --dummy, or unset SGLANG_EXTERNAL_MODEL_PACKAGE"
        )
    return RouterBias.from_dict(record["bias"])


@torch.no_grad()
def fill(
    parameters: Mapping[str, torch.Tensor], bias: RouterBias, *, first_token_id: int = 0
) -> Counter[str]:
    """Set a dummy model's tensors in place; returns how many of each kind, as `apply_bias` does.

    Args:
        parameters: SGLang's or transformers', by name.
        bias: made for dummy weights.
        first_token_id: the id of the first row where ranks share the vocabulary.
    """
    for name, tensor in parameters.items():
        kind = kind_of(name)
        if name.endswith("norm.weight"):
            tensor.fill_(1)
        elif kind in ("embedding", "router", "head"):
            seed = crc32(f"{bias.seed} {name} {first_token_id}".encode())
            generator = torch.Generator(device=tensor.device).manual_seed(seed)
            own_channels = tensor.shape[1] - bias.num_channels
            spread = 1.0 if kind == "embedding" else own_channels**-0.5
            tensor.normal_(0, spread, generator=generator)
    return apply_bias(parameters, bias, first_token_id=first_token_id)
