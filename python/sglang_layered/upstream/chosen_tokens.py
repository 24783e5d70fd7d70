"""Tokens that an indexer chose for the layers behind it, beside the rows (DSA with shared choices: GLM-5.2).

A layer that takes a choice over is handed it; from pipeline stage to pipeline stage, and so from layer group
to layer group, it travels with the activations. A choice is [rows, index_topk] int32: KV slots of each row's
tokens, -1 where it has fewer. A request keeps its slots while it is in flight, so rows of a choice are
joined, cut and dropped as any others. Upstream: srt/models/deepseek_v2.py `DeepseekV2Model`,
srt/models/deepseek_common/attention_forward_methods/forward_mla.py `forward_absorb_core`.
"""

from typing import Any

import torch
from sglang.srt.configs.model_config import dsa_layer_skips_topk
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors

CHOSEN = "topk_indices"  # among activations
TAKEN = "prev_topk_indices"  # among a layer's arguments
NO_TOKEN = -1


def joined_outputs(prompt: Any, decode: Any) -> Any:
    """What an attention module gave for prompt rows and for decode rows, as it would have given it for both.

    With an indexer it gives a pair where it ran in the latent space, rows and the choice that the next layer
    is to take over, or None; and rows alone where it ran with expanded keys and had no choice to make.
    """
    if not isinstance(prompt, tuple) and not isinstance(decode, tuple):
        return torch.cat([prompt, decode])
    pairs = [output if isinstance(output, tuple) else (output, None) for output in (prompt, decode)]
    (prompt_rows, prompt_choice), (decode_rows, decode_choice) = pairs
    rows = torch.cat([prompt_rows, decode_rows])
    if decode_choice is None:  # decode rows always choose: the next layer chooses anew
        return rows, None
    if prompt_choice is None:
        prompt_choice = nothing_chosen(decode_choice, prompt_rows.shape[0])
    return rows, torch.cat([prompt_choice, decode_choice])


def nothing_chosen(like: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The choice of rows that attend to all tokens."""
    return like.new_full((num_rows, like.shape[1]), NO_TOKEN)


def choosing_like(decode: PPProxyTensors, prompt: PPProxyTensors) -> PPProxyTensors:
    """The prompt's rows, with a choice where decode rows have one and they attend to all tokens."""
    choice = decode.tensors.get(CHOSEN)
    if choice is None or CHOSEN in prompt.tensors:
        return prompt
    nothing = nothing_chosen(choice, prompt["hidden_states"].shape[0])
    return PPProxyTensors(prompt.tensors | {CHOSEN: nothing})


def asks_behind_the_last(stack: Any) -> bool:
    """Whether this language model asks for a choice behind its last layer, where nobody makes one.

    It asks by the number of the layer that a stage begins with; no real stage begins there.
    """
    is_sparse = getattr(stack, "use_dsa", False)
    return is_sparse and dsa_layer_skips_topk(stack.config, stack.config.num_hidden_layers)
