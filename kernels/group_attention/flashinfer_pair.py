"""Group attention in two launches: FlashInfer's paged prefill for prompt rows, its decode for the others."""

from __future__ import annotations

import torch
from sglang_layered_kernels.group_attention.kernel import GroupAttention, PagedCache
from sglang_layered_kernels.group_attention.plan import AttentionShape, PageTables
from sglang_layered_kernels.group_attention.wrappers import WrapperFactory


class PagedPairAttention(GroupAttention):
    """Computes everything that the shape can ask for."""

    def __init__(self, shape: AttentionShape, wrappers: WrapperFactory) -> None:
        super().__init__(shape)
        self.prefill = wrappers.prefill()
        self.decode = wrappers.decode()

    def _plan_prompt(self, prompt: PageTables) -> None:
        self.prefill.plan(
            qo_indptr=prompt.qo_indptr,
            paged_kv_indptr=prompt.kv_indptr,
            paged_kv_indices=prompt.kv_indices,
            paged_kv_last_page_len=prompt.last_page_len,
            head_dim_qk=self._shape.head_dim,
            causal=True,
            logits_soft_cap=self._shape.soft_cap,
            **self._shape.plan_arguments(),
        )

    def _plan_step(self, prompt: PageTables, decode: PageTables) -> None:
        self.decode.plan(
            indptr=decode.kv_indptr,
            indices=decode.kv_indices,
            last_page_len=decode.last_page_len,
            head_dim=self._shape.head_dim,
            logits_soft_cap=self._shape.soft_cap,
            **self._shape.plan_arguments(),
        )

    def _attend(self, prompt_q: torch.Tensor, decode_q: torch.Tensor, paged: PagedCache) -> torch.Tensor:
        output = prompt_q.new_empty(len(prompt_q) + len(decode_q), *prompt_q.shape[1:])
        cut = len(prompt_q)
        self.prefill.run(q=prompt_q, paged_kv_cache=paged, out=output[:cut])
        self.decode.run(q=decode_q, paged_kv_cache=paged, out=output[cut:])
        return output
