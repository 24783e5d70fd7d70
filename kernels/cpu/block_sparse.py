"""CPU reference of attention to blocks of tokens that an indexer chooses (MiniMax-M3).

A row scores every token that it sees by its index heads, a block of tokens has the best of its scores, and
the row's query heads attend to the tokens of its best blocks, those of a key head to the blocks of the index
head of the same number. Upstream: srt/layers/attention/minimax_sparse_ops/minimax_sparse.py, whose arguments
these functions take; as many index heads as key heads, without sinks and without scales of 8-bit floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

NEVER = float("-inf")
FIRST, LAST = 1e30, 1e29  # scores of blocks that are always chosen, in the order in which they are


@dataclass(frozen=True, slots=True)
class BlockChoice:
    """How blocks of `size` tokens are chosen: `most` of them, the first and the last ones always."""

    size: int
    most: int
    num_first: int
    num_last: int
    score_type: str

    def tokens(self, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Which tokens each row attends to, of those that it sees.

        Args:
            scores: [heads, rows, tokens], -inf for a token that the row does not see.
            positions: [rows], of the rows' own tokens.

        Returns:
            [heads, rows, tokens] bool; tokens that the row does not see may be among them.
        """
        num_tokens = scores.shape[-1]
        blocks = torch.nn.functional.pad(scores, (0, -num_tokens % self.size), value=NEVER)
        blocks = blocks.unflatten(-1, (-1, self.size))
        best = blocks.logsumexp(-1) if self.score_type == "lse" else blocks.amax(-1)
        index, own = torch.arange(best.shape[-1]), (positions // self.size).unsqueeze(-1)
        best[:, :, : self.num_first] = FIRST
        best = best.masked_fill((index > own - self.num_last) & (index <= own), LAST)
        best = best.masked_fill(index > own, NEVER)
        chosen = best.topk(min(self.most, best.shape[-1]), dim=-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, chosen.indices, chosen.values > NEVER)
        return kept.repeat_interleave(self.size, dim=-1)[..., :num_tokens]


def minimax_sparse_prefill(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    sink: None,
    idx_q: torch.Tensor,
    idx_k_cache: torch.Tensor,
    idx_v_cache: torch.Tensor | None,
    idx_sink: None,
    req_to_token: torch.Tensor,
    slot_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    seq_lens: torch.Tensor,
    prefix_lens: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    block_size_q: int,
    block_size_k: int,
    topk: int,
    init_blocks: int,
    local_blocks: int,
    *,
    score_type: str = "max",
    **others: Any,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Output of the index heads, None where they have no values, and of the query heads.

    Rows [rows, heads, size] of all requests lie one after the other, as `cu_seqlens` [requests + 1] says. A
    request has `seq_lens` tokens, in the slots of its row in `req_to_token`; the caches are [slots, heads,
    size].
    """
    if idx_q.shape[1] != k_cache.shape[1]:
        raise NotImplementedError("another number of index heads than of key heads")
    choice = BlockChoice(block_size_k, topk, init_blocks, local_blocks, score_type)
    bounds, outputs, index_outputs = cu_seqlens.tolist(), [], []
    for number, (length, prefix) in enumerate(zip(seq_lens.tolist(), prefix_lens.tolist(), strict=True)):
        rows = slice(bounds[number], bounds[number + 1])
        slots = req_to_token[slot_ids[number], :length].long()
        positions = torch.arange(prefix, length)
        unseen = torch.arange(length) > positions.unsqueeze(-1)
        scores = _products(idx_q[rows], idx_k_cache[slots]).masked_fill(unseen, NEVER)
        if idx_v_cache is not None:
            index_outputs.append(_weighted(scores, idx_v_cache[slots]))
        chosen = choice.tokens(scores, positions).repeat_interleave(q.shape[1] // k_cache.shape[1], dim=0)
        attended = _products(q[rows], k_cache[slots]).masked_fill(unseen | ~chosen, NEVER)
        outputs.append(_weighted(attended, v_cache[slots]))
    return torch.cat(index_outputs) if index_outputs else None, torch.cat(outputs)


def minimax_sparse_decode(
    q: torch.Tensor,
    sink: None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    idx_q: torch.Tensor,
    idx_sink: None,
    idx_k_cache: torch.Tensor,
    idx_v_cache: torch.Tensor | None,
    req_to_token: torch.Tensor,
    slot_ids: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seqlen: int,
    block_size_q: int,
    block_size_k: int,
    topk: int,
    init_blocks: int,
    local_blocks: int,
    **others: Any,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """As `minimax_sparse_prefill`, with one row a request, its last."""
    bounds = torch.arange(len(seq_lens) + 1)
    sizes = (1, max_seqlen, block_size_q, block_size_k, topk, init_blocks, local_blocks)
    index = (idx_q, idx_k_cache, idx_v_cache, idx_sink)
    places = (req_to_token, slot_ids, bounds, seq_lens, seq_lens - 1)
    return minimax_sparse_prefill(q, k_cache, v_cache, sink, *index, *places, *sizes, **others)


def _products(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """[query heads, rows, tokens] of [rows, query heads, size] and [tokens, key heads, size], scaled."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return torch.einsum("rhd,thd->hrt", q, k.to(q.dtype)) * q.shape[-1] ** -0.5


def _weighted(scores: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """[rows, query heads, size]."""
    v = v.repeat_interleave(scores.shape[0] // v.shape[1], dim=1)
    return torch.einsum("hrt,thd->rhd", scores.softmax(-1), v.to(scores.dtype))
