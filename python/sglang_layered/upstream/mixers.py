"""Mixers that ask SGLang's attention backend for the states' places themselves, cut by rows.

State-space layers (Mamba2) call the backend of their states past `AttentionBackend.forward`, short
convolutions run their own kernel with what it plans. Both go by the plan of one batch, so in a group's layers
they run twice: prompt rows with the prompt's backend, decode rows with the decode's. Their projections are
read twice as well, experts are not. Upstream: `Mamba2AttnBackend` in
srt/layers/attention/hybrid_linear_attn_backend.py, srt/layers/attention/linear/short_conv_backend.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import nn

from sglang_layered.upstream.models import attend

# Methods that take rows [rows, hidden] and their batch, and give rows back, by the class that has them. A
# class that is not here would take the decode's plan for all rows: models/refused.py names families that are.
MIXERS = {
    "NemotronHMambaDecoderLayer": "_forward_mamba",
    "Lfm2MoeShortConv": "forward",
    "Lfm2ShortConv": "forward",
}


class SplitMixers:
    """Runs each of these methods twice; prompt rows come first."""

    def __init__(self, model_runner: Any, prompt_backend: Any) -> None:
        self._backends = (prompt_backend, model_runner.attn_backend)
        self._mixers = mixers_of(model_runner.model)

    @contextmanager
    def bound(self, prompt: ForwardBatch, decode: ForwardBatch) -> Iterator[None]:
        """Inside, rows `[prompt; decode]` are cut for these two batches."""
        sizes = (prompt.input_ids.shape[0], decode.input_ids.shape[0])
        parts = tuple(zip((prompt, decode), self._backends, strict=True))
        for module, name, run in self._mixers:
            vars(module)[name] = _twice(run, sizes, parts)
        try:
            yield
        finally:
            for module, name, _ in self._mixers:
                del vars(module)[name]


def mixers_of(model: nn.Module) -> list[tuple[nn.Module, str, Callable[..., torch.Tensor]]]:
    """The model's modules with such a method, its name and the method itself."""
    return [
        (module, name, getattr(module, name))
        for module in model.modules()
        if (name := MIXERS.get(type(module).__name__)) is not None
    ]


def _twice(
    run: Callable[..., torch.Tensor], sizes: tuple[int, int], parts: tuple[tuple[ForwardBatch, Any], ...]
) -> Callable[[torch.Tensor, ForwardBatch], torch.Tensor]:
    def split(hidden_states: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        outputs = []
        for rows, (batch, backend) in zip(hidden_states.split_with_sizes(sizes), parts, strict=True):
            with attend(backend, batch):
                outputs.append(run(rows, batch))
        return torch.cat(outputs)

    return split
