"""Group attention in two launches: FlashInfer's paged prefill for prompt rows, its decode for the others."""

from __future__ import annotations

import torch
from sglang_layered_kernels.group_attention.plan import AttentionShape, PageTables
from sglang_layered_kernels.group_attention.wrappers import WrapperFactory


class PagedPairAttention:
    """Planned once a step, run once a layer; a prompt's plan is kept while its tables are the same object."""

    def __init__(self, shape: AttentionShape, wrappers: WrapperFactory) -> None:
        self._shape = shape
        self.prefill = wrappers.prefill()
        self.decode = wrappers.decode()
        self._prompt: PageTables | None = None
        self._num_rows = (0, 0)

    def plan(self, prompt: PageTables, decode: PageTables) -> None:
        """Get ready for the layers of one step."""
        if prompt is not self._prompt:
            self._plan_prompt(prompt)
            self._prompt = prompt
        shape = self._shape
        self.decode.plan(
            indptr=decode.kv_indptr,
            indices=decode.kv_indices,
            last_page_len=decode.last_page_len,
            num_qo_heads=shape.num_q_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            page_size=shape.page_size,
            window_left=shape.window_left,
            logits_soft_cap=shape.soft_cap,
            q_data_type=shape.dtype,
            kv_data_type=shape.dtype,
            sm_scale=shape.scale,
        )
        self._num_rows = (prompt.num_rows, decode.num_rows)

    def _plan_prompt(self, prompt: PageTables) -> None:
        shape = self._shape
        self.prefill.plan(
            qo_indptr=prompt.qo_indptr,
            paged_kv_indptr=prompt.kv_indptr,
            paged_kv_indices=prompt.kv_indices,
            paged_kv_last_page_len=prompt.last_page_len,
            num_qo_heads=shape.num_q_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim_qk=shape.head_dim,
            page_size=shape.page_size,
            causal=True,
            sm_scale=shape.scale,
            window_left=shape.window_left,
            logits_soft_cap=shape.soft_cap,
            q_data_type=shape.dtype,
            kv_data_type=shape.dtype,
        )

    def run(self, q: torch.Tensor, kv_cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Attend in one layer, whose new keys and values are in the pool already.

        Args:
            q: Contiguous queries [prompt rows + decode rows, heads, head_dim].
            kv_cache: The layer's keys and values, each [slots, kv heads, head_dim].

        Returns:
            Output of q's shape.
        """
        check_rows(q, self._num_rows)
        output = torch.empty_like(q)
        cut = self._num_rows[0]
        paged = (self._shape.paged(kv_cache[0]), self._shape.paged(kv_cache[1]))
        self.prefill.run(q=q[:cut], paged_kv_cache=paged, out=output[:cut])
        self.decode.run(q=q[cut:], paged_kv_cache=paged, out=output[cut:])
        return output


def check_rows(q: torch.Tensor, num_rows: tuple[int, int]) -> None:
    """Queries must be those of the plan: (prompt rows, decode rows)."""
    if q.shape[0] != sum(num_rows):
        raise AssertionError(f"{q.shape[0]} query rows, but {num_rows} prompt and decode rows are planned")
