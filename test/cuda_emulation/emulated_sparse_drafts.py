"""The kernels of sparse attention that only drafts need, in plain torch: plans of their rows, and a norm.

A request has as many rows as it has drafts to verify. Each row sees one token more than the one before.
"""

from __future__ import annotations

from typing import Any

import torch

import moved_kernels
from emulated_kernels import normed
from emulated_sparse import write_lengths
from memory_watch import as_kernel


def emulate_sparse_drafts() -> None:
    """Put them where SGLang calls the kernels."""
    import sglang.srt.models.deepseek_nextn as draft

    moved_kernels.put(
        fused_dsa_target_verify_metadata=plan_verify,
        fused_dsa_draft_extend_metadata=plan_draft_extend,
        fused_metadata_copy_cuda=not_there,
        fused_metadata_copy_multi_cuda=not_there,
    )
    draft.fused_eh_norm = norm_both


PLANNED = (
    "cache_seqlens",
    "cu_seqlens_k",
    "page_table_1",
    "seqlens_expanded",
    "dsa_cache_seqlens",
    "dsa_cu_seqlens_k",
    "real_page_table",
)


@as_kernel(*PLANNED)
def _plan(
    seq_lens: Any,
    req_pool_indices: Any,
    req_to_token: Any,
    cache_seqlens: Any,
    cu_seqlens_k: Any,
    page_table_1: Any,
    seqlens_expanded: Any,
    dsa_cache_seqlens: Any,
    dsa_cu_seqlens_k: Any,
    real_page_table: Any,
    num_requests: int,
    num_drafts: int,
    num_chosen: int,
    width: int,
    page_size: int,
) -> None:
    """`seq_lens` [requests] with the drafts; `num_drafts` rows of each request see the last tokens of it.

    In place, as captured kernels need it: lengths of requests, and of rows how many tokens each sees, all of
    them and at most `num_chosen`; and the slots of the tokens, by row.
    """
    num_rows = num_requests * num_drafts
    assert len(seq_lens) == len(req_pool_indices) == num_requests
    behind = torch.arange(num_drafts - 1, -1, -1).repeat(num_requests)
    visible = (seq_lens.repeat_interleave(num_drafts) - behind).clamp(min=0)
    seqlens_expanded[:num_rows].copy_(visible)
    write_lengths(seq_lens, cache_seqlens, cu_seqlens_k)
    write_lengths(visible.clamp(max=num_chosen), dsa_cache_seqlens, dsa_cu_seqlens_k)
    table = req_to_token[req_pool_indices.repeat_interleave(num_drafts), :width]
    if page_table_1 is not None:
        assert width == page_table_1.shape[1]
        page_table_1[:num_rows].copy_(table)
    real_page_table[:num_rows].copy_(table[:, ::page_size] // page_size)


def plan_verify(
    *,
    seq_lens: Any,
    bs: int,
    max_seqlen_k: int,
    dsa_index_topk: int,
    next_n: int,
    paged_mqa_ctx_lens_2d: Any = None,
    **tables: Any,
) -> None:
    """The drafts are behind `seq_lens`."""
    assert paged_mqa_ctx_lens_2d is None, "a plan of Blackwell's"
    sizes = {"num_requests": bs, "num_drafts": next_n}
    chosen = {"num_chosen": dsa_index_topk, "width": max_seqlen_k, "page_size": page_size_in(tables)}
    _plan(seq_lens=seq_lens + next_n, **tables, **sizes, **chosen)


def plan_draft_extend(
    *,
    seq_lens: Any,
    extend_seq_lens: Any,
    bs: int,
    total_len: int,
    max_seqlen_k: int,
    dsa_index_topk: int,
    max_extend_len: int,
    max_total_len: int,
    static_extend_len: bool,
    **tables: Any,
) -> None:
    """The drafts are the last tokens of `seq_lens`."""
    assert static_extend_len and total_len == bs * max_extend_len == max_total_len
    assert extend_seq_lens.tolist() == [max_extend_len] * bs
    sizes = {"num_requests": bs, "num_drafts": max_extend_len}
    chosen = {"num_chosen": dsa_index_topk, "width": max_seqlen_k, "page_size": page_size_in(tables)}
    _plan(seq_lens=seq_lens, **tables, **sizes, **chosen)


def page_size_in(call: dict[str, Any]) -> int:
    """Taken out of what a plan was called with: each release has a name of its own for it."""
    [name] = call.keys() & {"real_page_size", "physical_page_size"}
    size: int = call.pop(name)
    return size


def not_there(*args: Any) -> None:
    """SGLang then copies a plan tensor by tensor, to each step of a draft."""
    raise ImportError("a kernel that copies plans")


@as_kernel()
def norm_both(embeds: Any, hidden: Any, embeds_weight: Any, hidden_weight: Any, eps: float) -> torch.Tensor:
    """Two kinds of rows, each normed, side by side."""
    return torch.cat([normed(embeds, embeds_weight, eps), normed(hidden, hidden_weight, eps)], dim=-1)
