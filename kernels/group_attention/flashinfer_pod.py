"""Group attention in one launch: FlashInfer's POD kernels mix prompt and decode tiles on each SM."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from sglang_layered_kernels.group_attention.kernel import GroupAttention, PagedCache
from sglang_layered_kernels.group_attention.plan import AttentionShape, PageTables
from sglang_layered_kernels.group_attention.wrappers import WrapperFactory

from sglang_layered.errors import UnsupportedError

DECODE_TILE_ROWS = 16  # FlashInfer 0.6: the decode tile of pod.cu and batch_pod.cu


class PodAttention(GroupAttention):
    """POD for one prompt, batch POD for several.

    POD for one prompt takes its keys as one contiguous tensor; they are gathered from the pool in each layer.

    Raises:
        UnsupportedError: the shape has what these kernels do not compute: a soft cap, or more query heads a
            KV head than a decode tile has rows.
    """

    def __init__(self, shape: AttentionShape, wrappers: WrapperFactory) -> None:
        if shape.soft_cap > 0:
            raise UnsupportedError("POD kernels compute no soft cap on attention scores")
        if shape.num_q_heads > DECODE_TILE_ROWS * shape.num_kv_heads:
            raise UnsupportedError(f"POD kernels take at most {DECODE_TILE_ROWS} query heads a KV head")
        super().__init__(shape)
        self._wrappers = wrappers
        self._prompt_slots: torch.Tensor | None = None

    @cached_property
    def _one(self) -> Any:
        return self._wrappers.pod()

    @cached_property
    def _several(self) -> Any:
        return self._wrappers.batch_pod()

    def _plan_prompt(self, prompt: PageTables) -> None:
        self._prompt_slots = prompt.only_slots() if prompt.num_requests == 1 else None

    def _plan_step(self, prompt: PageTables, decode: PageTables) -> None:
        common = {"head_dim": self._shape.head_dim, **self._shape.plan_arguments()}
        if self._prompt_slots is not None:
            self._one.plan(
                indptr=decode.kv_indptr,
                indices=decode.kv_indices,
                last_page_len=decode.last_page_len,
                **common,
            )
        else:
            self._several.plan(
                qo_indptr_p=prompt.qo_indptr,
                kv_indptr_p=prompt.kv_indptr,
                kv_indices_p=prompt.kv_indices,
                last_page_len_p=prompt.last_page_len,
                qo_indptr_d=decode.qo_indptr,
                kv_indptr_d=decode.kv_indptr,
                kv_indices_d=decode.kv_indices,
                last_page_len_d=decode.last_page_len,
                **common,
            )

    def _attend(self, prompt_q: torch.Tensor, decode_q: torch.Tensor, paged: PagedCache) -> torch.Tensor:
        if self._prompt_slots is None:
            outputs = self._several.run(
                q_p=prompt_q, paged_kv_cache_p=paged, q_d=decode_q, paged_kv_cache_d=paged, causal_p=True
            )
        else:
            keys, values = (cache.flatten(0, 1).index_select(0, self._prompt_slots) for cache in paged)
            outputs = self._one.run(
                q_p=prompt_q,
                k_p=keys,
                v_p=values,
                q_d=decode_q,
                paged_kv_cache_d=paged,
                causal_p=True,
                sm_scale_p=self._shape.scale,
                window_left_p=self._shape.window_left,
            )
        return torch.cat(outputs)
