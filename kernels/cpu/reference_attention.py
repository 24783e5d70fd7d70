"""CPU reference of what SGLang's torch attention leaves out.

Sinks, soft caps, KV pools of layers with a sliding window, prompts of latent attention, drafts to verify.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class ReferenceAttention(TorchNativeAttnBackend):
    """SGLang's torch attention, and our own where a layer has sinks or a soft cap, or is handed all its keys.

    Also where layers with a sliding window have a KV pool of their own: SGLang's writes to the slots of that
    pool and reads those of the other, which are the same numbers until the first eviction.

    Latent attention (MLA) hands over the keys of a prompt without a prefix: expanded ones, which the pool
    never holds.
    """

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> Any:
        """As upstream; `sinks` [heads]."""
        if forward_batch.forward_mode.is_target_verify():
            self._save(k, v, layer, forward_batch, save_kv_cache)
            return self._verify(q, layer, forward_batch, sinks)
        if k is not None and v is not None and not save_kv_cache:
            return _attend_expanded(q, k, v, layer, forward_batch)
        if sinks is None and not layer.logit_cap and not self.use_sliding_window_kv_pool:
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        self._save(k, v, layer, forward_batch, save_kv_cache)
        slots = self._contexts(layer, forward_batch, forward_batch.seq_lens)
        return self._attend(q, layer, slots, forward_batch.extend_seq_lens.tolist(), sinks)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> Any:
        """As upstream; `sinks` [heads]."""
        if sinks is None and not layer.logit_cap and not self.use_sliding_window_kv_pool:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        self._save(k, v, layer, forward_batch, save_kv_cache)
        slots = self._contexts(layer, forward_batch, forward_batch.seq_lens)
        return self._attend(q, layer, slots, [1] * forward_batch.batch_size, sinks)

    def _save(
        self, k: torch.Tensor | None, v: torch.Tensor | None, layer: Any, batch: ForwardBatch, wanted: bool
    ) -> None:
        if wanted and k is not None and v is not None:
            where = KVWriteLoc(batch.out_cache_loc, self.swa_out_cache_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, where, k, v)

    def _verify(
        self, q: torch.Tensor, layer: Any, batch: ForwardBatch, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """Drafts of each request, behind its `seq_lens` tokens; such a batch has no lengths of extends."""
        drafts, num_drafts = batch.spec_info, batch.spec_info.draft_token_num
        trees = None
        if drafts.tree_topk != 1:  # a chain of drafts has no need of its mask
            trees = drafts.custom_mask.view(-1, num_drafts, num_drafts)
        slots = self._contexts(layer, batch, batch.seq_lens + num_drafts)
        return self._attend(q, layer, slots, [num_drafts] * batch.batch_size, sinks, trees)

    def _contexts(self, layer: Any, batch: ForwardBatch, ends: torch.Tensor) -> list[torch.Tensor]:
        """Slots of each request's first tokens, as many as `ends` [requests] says."""
        tables = self.req_to_token_pool.req_to_token[batch.req_pool_indices]
        return [
            self._slots(table[:end], layer.layer_id) for table, end in zip(tables, ends.tolist(), strict=True)
        ]

    def _attend(
        self,
        q: torch.Tensor,
        layer: Any,
        slots: list[torch.Tensor],
        query_lens: list[int],
        sinks: torch.Tensor | None,
        trees: torch.Tensor | None = None,
    ) -> torch.Tensor:
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        values = self.token_to_kv_pool.get_value_buffer(layer.layer_id)
        queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim).split(query_lens)
        outputs = [
            attention(
                query,
                keys[own],
                values[own],
                scale=layer.scaling,
                window_left=layer.sliding_window_size,
                soft_cap=layer.logit_cap,
                sinks=sinks,
                tree=None if trees is None else trees[request],
            )
            for request, (query, own) in enumerate(zip(queries, slots, strict=True))
        ]
        return torch.cat(outputs).view(q.shape[0], -1)

    def _slots(self, table: torch.Tensor, layer: int) -> torch.Tensor:
        """A request's slots in the pool of a layer; 0 for keys that have left its window."""
        if not self.use_sliding_window_kv_pool or not self.token_to_kv_pool.layers_mapping[layer][1]:
            return table
        return self.token_to_kv_pool.translate_loc_from_full_to_swa(table)


def _attend_expanded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any, batch: ForwardBatch
) -> torch.Tensor:
    """Prompts without a prefix over the keys and values of their own rows."""
    if batch.extend_prefix_lens.any():
        raise AssertionError("expanded keys of a prompt's prefix are not there")
    lengths = batch.extend_seq_lens.tolist()
    queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim).split(lengths)
    keys = k.view(-1, layer.tp_k_head_num, layer.qk_head_dim).split(lengths)
    values = v.view(-1, layer.tp_v_head_num, layer.v_head_dim).split(lengths)
    rows = zip(queries, keys, values, strict=True)
    return torch.cat([attention(*row, scale=layer.scaling) for row in rows]).view(q.shape[0], -1)


def attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float,
    window_left: int = -1,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
    tree: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of one request's last rows.

    With scores s_j of the keys that a row sees, a soft cap c turns s_j into c tanh(s_j / c). A sink z is a
    logit of the head without a value: key j weighs exp(s_j) / (exp(z) + sum_k exp(s_k)).

    Args:
        query: [rows, heads, head_dim], the last rows of the request.
        keys: [tokens, kv heads, head_dim], oldest first, the rows' own included.
        values: as keys.
        scale: multiplies the scores.
        window_left: keys before its own that a row sees; -1: all.
        soft_cap: 0: none.
        sinks: [heads].
        tree: [rows, rows] bool: which rows a row sees, itself and those above it in a tree; None: all before.

    Returns:
        [rows, heads, head_dim].
    """
    num_rows, num_heads, _ = query.shape
    share = num_heads // keys.shape[1]
    keys, values = keys.repeat_interleave(share, dim=1), values.repeat_interleave(share, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, keys) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    position, num_before = torch.arange(len(keys)), len(keys) - num_rows
    if tree is not None:
        position[num_before:] = num_before + tree.sum(-1) - 1
    own = position[num_before:, None]
    seen = position <= own
    if tree is not None:
        seen[:, num_before:] = tree
    if window_left >= 0:
        seen &= position >= own - window_left
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        sink = sinks.to(scores.dtype)[:, None, None].expand(-1, num_rows, 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(dim=-1)[..., : len(keys)]
    return torch.einsum("hqk,khd->qhd", weights, values)
