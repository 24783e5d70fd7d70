"""Group attention in one launch: FlashInfer's POD kernels mix prompt and decode tiles on each SM."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from sglang_layered_kernels.group_attention.flashinfer_pair import check_rows
from sglang_layered_kernels.group_attention.plan import AttentionShape, PageTables
from sglang_layered_kernels.group_attention.wrappers import WrapperFactory

from sglang_layered.errors import UnsupportedError

DECODE_TILE_ROWS = 16  # FlashInfer 0.6: the decode tile of pod.cu and batch_pod.cu


class PodAttention:
    """Planned once a step, run once a layer: POD for one prompt, batch POD for several.

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
        self._shape = shape
        self._wrappers = wrappers
        self._prompt: PageTables | None = None
        self._prompt_slots: torch.Tensor | None = None
        self._num_rows = (0, 0)

    @cached_property
    def _one(self) -> Any:
        return self._wrappers.pod()

    @cached_property
    def _several(self) -> Any:
        return self._wrappers.batch_pod()

    def plan(self, prompt: PageTables, decode: PageTables) -> None:
        """Get ready for the layers of one step."""
        if prompt is not self._prompt:
            self._prompt_slots = prompt.only_slots() if prompt.num_requests == 1 else None
            self._prompt = prompt
        if self._prompt_slots is not None:
            self._one.plan(
                indptr=decode.kv_indptr,
                indices=decode.kv_indices,
                last_page_len=decode.last_page_len,
                **self._common(),
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
                **self._common(),
            )
        self._num_rows = (prompt.num_rows, decode.num_rows)

    def _common(self) -> dict[str, Any]:
        shape = self._shape
        return {
            "num_qo_heads": shape.num_q_heads,
            "num_kv_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "page_size": shape.page_size,
            "window_left": shape.window_left,
            "q_data_type": shape.dtype,
            "kv_data_type": shape.dtype,
            "sm_scale": shape.scale,
        }

    def run(self, q: torch.Tensor, kv_cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Attend in one layer, whose new keys and values are in the pool already.

        Args:
            q: Contiguous queries [prompt rows + decode rows, heads, head_dim].
            kv_cache: The layer's keys and values, each [slots, kv heads, head_dim].

        Returns:
            Output of q's shape.
        """
        check_rows(q, self._num_rows)
        cut = self._num_rows[0]
        paged = (self._shape.paged(kv_cache[0]), self._shape.paged(kv_cache[1]))
        if self._prompt_slots is None:
            prompt, decode = self._several.run(
                q_p=q[:cut], paged_kv_cache_p=paged, q_d=q[cut:], paged_kv_cache_d=paged, causal_p=True
            )
        else:
            keys, values = (cache.index_select(0, self._prompt_slots) for cache in kv_cache)
            prompt, decode = self._one.run(
                q_p=q[:cut],
                k_p=keys,
                v_p=values,
                q_d=q[cut:],
                paged_kv_cache_d=paged,
                causal_p=True,
                sm_scale_p=self._shape.scale,
                window_left_p=self._shape.window_left,
            )
        return torch.cat([prompt, decode])
