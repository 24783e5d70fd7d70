"""SGLang 0.5.17's layers: what one hands to the next, and what attention modules are given beside rows.

Upstream: srt/layers/communicator.py.
"""

from typing import Any

import torch
from sglang.srt.layers.communicator import AttentionInputs, get_attn_tp_context
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.runtime_context import get_forward


def refuse_uncut_layers() -> None:
    """Layers hand rows and residual on, and any of them may be the last of a range."""


def give_rows(module: Any, rows: torch.Tensor, batch: ForwardBatch) -> None:
    """Let an attention module that computes its latent inputs itself do so for these rows."""
    if get_forward().attn_inputs is not None:
        inputs = AttentionInputs(rows, batch, module.prepare_qkv_latent)
        get_attn_tp_context().set_attn_inputs(inputs)
