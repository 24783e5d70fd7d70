"""Attention modules that must see prompt and decode rows apart: latent attention (MLA).

MLA computes prompt rows with expanded keys and decode rows in the latent space: other projections, other
shapes, chosen inside the module by the batch's forward mode. So the cut is at the module, not at the
attention backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.layers.communicator import AttentionInputs, get_attn_tp_context
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.runtime_context import get_forward
from torch import nn


class SplitAttention:
    """Runs the `self_attn` of each layer twice: prompt rows as extend, decode rows as decode.

    Upstream: srt/models/deepseek_v2.py `DeepseekV2AttentionMLA`.
    """

    def __init__(self, model: nn.Module, prompt_backend: Any, decode_backend: Any) -> None:
        self._backends = (prompt_backend, decode_backend)
        self._modules = [
            module for name, module in model.named_modules() if name.rpartition(".")[2] == "self_attn"
        ]

    @contextmanager
    def bound(self, prompt: ForwardBatch, decode: ForwardBatch) -> Iterator[None]:
        """Inside, rows `[prompt; decode]` are cut for these two batches."""
        forwards = [module.forward for module in self._modules]
        for module, forward in zip(self._modules, forwards, strict=True):
            vars(module)["forward"] = self._splitter(module, forward, (prompt, decode))
        try:
            yield
        finally:
            for module in self._modules:
                del vars(module)["forward"]

    def _splitter(
        self, module: Any, forward: Callable[..., Any], batches: tuple[ForwardBatch, ForwardBatch]
    ) -> Callable[..., torch.Tensor]:
        num_prompt_rows = batches[0].input_ids.shape[0]
        parts = (slice(None, num_prompt_rows), slice(num_prompt_rows, None))

        def split(
            positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: ForwardBatch, **kwargs: Any
        ) -> torch.Tensor:
            outputs = []
            for rows, batch, backend in zip(parts, batches, self._backends, strict=True):
                if get_forward().attn_inputs is not None:
                    inputs = AttentionInputs(hidden_states[rows], batch, module.prepare_qkv_latent)
                    get_attn_tp_context().set_attn_inputs(inputs)
                with forward_context(ForwardContext(attn_backend=backend)):
                    outputs.append(
                        forward(
                            positions=positions[rows],
                            hidden_states=hidden_states[rows],
                            forward_batch=batch,
                            **kwargs,
                        )
                    )
            return torch.cat(outputs)

        return split
