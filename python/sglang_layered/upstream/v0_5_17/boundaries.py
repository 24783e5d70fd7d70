"""SGLang 0.5.17's layers: what one hands to the next, and what attention modules are given beside rows.

Upstream: srt/layers/communicator.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.distributed import get_pp_group
from sglang.srt.layers.communicator import AttentionInputs, get_attn_tp_context
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.runtime_context import get_forward
from torch import nn

PROVES_STAGES = False
"""Whether ranges of a model with pipeline stages are compared with the whole model while a server starts."""

PROCESS_GROUP = get_pp_group.__name__
"""What a stack of layers calls to ask past its own pipeline group (srt/models/kimi_k3.py)."""

HANDED: tuple[type, ...] = (torch.Tensor,)
"""What a layer may hand to the next one as its rows."""


def process_group(group: Any) -> Callable[[], Any]:
    """What stands in the place of PROCESS_GROUP while this group is the process's."""
    return lambda: group


def with_ends(stack: nn.Module) -> tuple[str, list[Any]] | None:
    """None: a range behind the last layer is entered as any other. Else as of 0.5.23."""
    return None


def handover(layers: nn.ModuleList) -> Any:
    """None: layers of a list take rows and return them. Else as of 0.5.23."""
    return None


def give_rows(module: Any, rows: torch.Tensor, batch: ForwardBatch) -> None:
    """Let an attention module that computes its latent inputs itself do so for these rows."""
    if get_forward().attn_inputs is not None:
        inputs = AttentionInputs(rows, batch, module.prepare_qkv_latent)
        get_attn_tp_context().set_attn_inputs(inputs)
