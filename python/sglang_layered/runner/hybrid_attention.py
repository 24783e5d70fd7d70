"""Attention of a group's layers: prompt rows as extend on one backend, decode rows as decode on another."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

ROW_ARGUMENTS = frozenset({"q_rope", "k_rope"})
HEAD_ARGUMENTS = frozenset({"sinks", "cos_sin_cache", "is_neox", "llama_4_scaling"})


class HybridAttention(AttentionBackend):
    """Two attention backends behind one, for rows `[prompt; decode]`.

    They are separate instances because decode plans anew every step while the prompt's plan lives until its
    last group. Class attributes are copied: `__getattr__` never sees a name that the base class defines.
    """

    def __init__(self, prompt_backend: Any, decode_backend: Any) -> None:
        super().__init__()
        self.prompt_backend = prompt_backend
        self.decode_backend = decode_backend
        self.needs_cpu_seq_lens = decode_backend.needs_cpu_seq_lens
        self.prefill_attention_backend_str = decode_backend.prefill_attention_backend_str
        self.decode_attention_backend_str = decode_backend.decode_attention_backend_str
        self._prompt: ForwardBatch | None = None
        self._decode: ForwardBatch | None = None
        self._num_prompt_rows = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "decode_backend" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.decode_backend, name)

    def bind(self, prompt: ForwardBatch, decode: ForwardBatch) -> HybridAttention:
        """Attend for these two batches from now on."""
        self._prompt, self._decode = prompt, decode
        self._num_prompt_rows = prompt.input_ids.shape[0]
        return self

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention output [prompt rows + decode rows, heads * head_dim]; q, k, v are cut by rows."""
        unknown = kwargs.keys() - ROW_ARGUMENTS - HEAD_ARGUMENTS
        if unknown:
            raise NotImplementedError(f"attention arguments {sorted(unknown)} are unknown to layered mode")
        q, cut = _rows_first(q), self._num_prompt_rows
        prompt_k, decode_k = _cut(_rows_first(k), cut)
        prompt_v, decode_v = _cut(v, cut)
        prompt_kwargs = {name: _rows(name, value, slice(None, cut)) for name, value in kwargs.items()}
        decode_kwargs = {name: _rows(name, value, slice(cut, None)) for name, value in kwargs.items()}
        prompt = self.prompt_backend.forward(
            q[:cut], prompt_k, prompt_v, layer, self._prompt, save_kv_cache, **prompt_kwargs
        )
        decode = self.decode_backend.forward(
            q[cut:], decode_k, decode_v, layer, self._decode, save_kv_cache, **decode_kwargs
        )
        return torch.cat([prompt.reshape(cut, -1), decode.reshape(q.shape[0] - cut, -1)])


def _rows_first(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Some models hand over [1, rows, heads, head_dim] (upstream: srt/models/gemma3_causal.py)."""
    return tensor.squeeze(0) if tensor is not None and tensor.dim() == 4 else tensor


def _cut(tensor: torch.Tensor | None, at: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (None, None) if tensor is None else (tensor[:at], tensor[at:])


def _rows(name: str, value: Any, rows: slice) -> Any:
    return value[rows] if name in ROW_ARGUMENTS and value is not None else value
