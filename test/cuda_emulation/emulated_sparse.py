"""The kernels of DeepSeek's sparse attention (DSA) in plain torch: index keys, choice of tokens, attention.

What calls them stays SGLang's: the indexer, its cache of 8-bit keys in pages of 64, the backend's plans.
FlashAttention 3, which runs decode rows there, is emulated_flash_attention's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import moved_kernels
from emulated_flash_attention import attend_wide, flash_attn_varlen_func, flash_attn_with_kvcache, slots_of
from emulated_kernels import _rotate_part
from memory_watch import as_kernel

FP8 = torch.float8_e4m3fn
PAGE, KEY = 64, 128  # tokens of a page, elements of an index key; a page holds its keys, then their scales
NO_TOKEN = -1


def emulate_sparse_attention() -> None:
    """Put them where SGLang calls the kernels."""
    import deep_gemm
    import sgl_kernel
    import sglang.kernels.ops.attention.dsv4.topk as topk
    import sglang.kernels.ops.quantization.hadamard as rotation
    import sglang.srt.layers.attention.dsa.dsa_indexer as indexer
    import sglang.srt.layers.attention.dsa_backend as backend
    from sglang.srt.mem_cache.memory_pool import DSATokenToKVPool

    deep_gemm.get_num_sms = lambda: 132
    deep_gemm.get_paged_mqa_logits_metadata = plan_scores
    deep_gemm.fp8_mqa_logits, deep_gemm.fp8_paged_mqa_logits = score, score_paged
    sgl_kernel.fast_topk_transform_fused = choose
    topk.plan_topk_v2 = plan_choice
    moved_kernels.put(
        topk_transform_paged_v2=choose_paged,
        act_quant=quantize,
        fused_dsa_decode_metadata=set_decode_metadata,
        flash_mla_sparse_fwd=attend_to_chosen,
    )
    rotation.hadamard_transform = rotate_all
    indexer.can_use_dsa_fused_store = lambda *args: True
    indexer.fused_store_index_k_cache = store_keys
    indexer.Indexer._weights_proj_bf16_in_fp32_out = weigh_heads
    indexer.Indexer.__init__ = with_rows_in_its_dtype(indexer.Indexer.__init__)
    indexer.fused_q_indexer_rope_first_quant = rotate_and_quantize
    indexer.fused_k_indexer_norm_rope_store = norm_and_store
    DSATokenToKVPool.get_index_k_scale_buffer = gather_keys
    backend.flash_attn_with_kvcache = flash_attn_with_kvcache
    backend.flash_attn_varlen_func = flash_attn_varlen_func


class OnDevice(torch.Tensor):
    """A tensor that names its device by a number, which the indexer asks for; the CPU has none."""

    device = property(lambda self: torch.device("cuda", 0))  # type: ignore[assignment]


@as_kernel()
def rotate_all(rows: torch.Tensor, scale: float) -> torch.Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < rows.shape[-1]:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (rows.float() @ matrix * scale).to(rows.dtype)


def _quantized(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row numbers in 8 bits and a scale that is a power of two."""
    wide = rows.float()
    scale = (wide.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 448).log2().ceil().exp2()
    return (wide / scale).clamp(-448, 448).to(FP8), scale


@as_kernel()
def quantize(rows: Any, block_size: int = KEY, scale_fmt: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    assert rows.shape[-1] == block_size == KEY
    small, scale = _quantized(rows)
    return small.as_subclass(OnDevice), scale


def weigh_heads(self: Any, rows: torch.Tensor) -> torch.Tensor:
    return rows.float() @ self.weights_proj.weight.float().T


@as_kernel("index_k_with_scale")
def store_keys(key: Any, index_k_with_scale: Any, out_cache_loc: Any, page_size: int = PAGE) -> None:
    assert page_size == PAGE and out_cache_loc.dtype == torch.int64
    small, scale = _quantized(key)
    keys, scales = _views(index_k_with_scale)
    keys[out_cache_loc // PAGE, out_cache_loc % PAGE] = small.view(torch.uint8)
    scales[out_cache_loc // PAGE, out_cache_loc % PAGE] = scale.view(torch.uint8)


def with_rows_in_its_dtype(init: Callable[..., None]) -> Callable[..., None]:
    """The projection that SGLang keeps in bfloat16 takes rows of a model in float32."""

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for name, module in self.named_children():
            if name == "wk_weights_proj":
                module.register_forward_pre_hook(lambda module, rows: (rows[0].to(module.weight.dtype),))

    return made


def _rotated(rows: torch.Tensor, table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[rows, heads, 128] with the first elements turned, in pairs of neighbours."""
    turned = rows.float().clone()
    _rotate_part(turned[..., : table.shape[-1]], table[positions].float(), False)
    return turned


@as_kernel()
def rotate_and_quantize(
    q: Any, weight: Any, weight_scale: float, table: Any, positions: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    small, scale = _quantized(_rotated(q, table, positions))
    return small.as_subclass(OnDevice), weight.float().unsqueeze(-1) * weight_scale * scale


@as_kernel("pages")
def norm_and_store(
    key: Any,
    pages: Any,
    out_cache_loc: Any,
    weight: Any,
    bias: Any,
    eps: float,
    table: Any,
    positions: Any,
    page_size: int,
) -> None:
    assert len(key) == len(out_cache_loc) == len(positions)
    rows = torch.nn.functional.layer_norm(key.float(), (KEY,), weight, bias, eps)
    rows = _rotated(rows.unsqueeze(1), table, positions).squeeze(1)
    store_keys.__wrapped__(rows, pages, out_cache_loc, page_size)


def _views(pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [pages, page, 128] and scales [pages, page, 4] of a layer's index cache, in bytes."""
    assert pages.dtype == torch.uint8 and pages.shape[1] == PAGE * (KEY + 4)
    return pages[:, : PAGE * KEY].view(-1, PAGE, KEY), pages[:, PAGE * KEY :].view(-1, PAGE, 4)


@as_kernel()
def _gather(pages: Any, tables: Any, lengths: Any) -> tuple[torch.Tensor, torch.Tensor]:
    keys, scales = _views(pages)
    slots = torch.cat([slots_of(tables[row], length, PAGE) for row, length in enumerate(lengths.tolist())])
    return keys[slots // PAGE, slots % PAGE], scales[slots // PAGE, slots % PAGE]


def gather_keys(self: Any, layer_id: int, lengths: Any, tables: Any, total: int, longest: int) -> Any:
    """Keys and scales of whole requests, one after the other."""
    keys, scales = _gather(self.get_index_k_with_scale_buffer(layer_id), tables, lengths)
    assert len(keys) == total and int(lengths.max()) == longest
    return keys, scales


def _scores(q: torch.Tensor, keys: torch.Tensor, scales: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[rows, keys]: over the heads, weighted, what is positive of each product."""
    products = torch.einsum("rhd,kd->rhk", q.as_subclass(torch.Tensor).float(), keys.float()).relu()
    return torch.einsum("rhk,rh->rk", products, weights) * scales.float()


@as_kernel()
def score(q: Any, kv: Any, weights: Any, ks: Any, ke: Any, clean_logits: bool = True) -> torch.Tensor:
    """Rows on the keys of all requests; those before `ks` and from `ke` on mean nothing."""
    keys, scales = kv
    assert len(q) == len(weights) == len(ks) == len(ke) and int(ke.max()) <= len(keys)
    found = _scores(q, keys, scales, weights)
    column = torch.arange(len(keys))
    outside = (column < ks.unsqueeze(1)) | (column >= ke.unsqueeze(1))
    return found.masked_fill(outside, float("nan"))


@as_kernel()
def plan_scores(lengths: torch.Tensor, block: int, num_sms: int) -> torch.Tensor:
    assert lengths.dim() == 2 and lengths.dtype == torch.int32
    return torch.zeros((num_sms + 1, 2), dtype=torch.int32)


@as_kernel()
def score_paged(
    q: Any, cache: Any, weights: Any, lengths: Any, tables: Any, plan: Any, longest: int, **others: Any
) -> torch.Tensor:
    """One row a request on its own pages; what is behind its length means nothing."""
    assert len(q) == len(weights) == len(lengths) == len(tables), (len(q), len(lengths), len(tables))
    keys, scales = _views(cache.flatten(1))
    found = torch.full((len(q), (longest + 3) // 4 * 4), float("nan"))
    for row, length in enumerate(lengths.flatten().tolist()):
        slots = slots_of(tables[row], length, PAGE)
        seen = keys[slots // PAGE, slots % PAGE].view(FP8)
        scale = scales[slots // PAGE, slots % PAGE].contiguous().view(torch.float32).squeeze(-1)
        found[row, :length] = _scores(q[row], seen, scale, weights[row : row + 1])
    return found[:, :longest]


def _best(scores: torch.Tensor, length: int, topk: int) -> torch.Tensor:
    """Positions of the tokens with the best scores, all of them where they are few."""
    mine = scores[:length]
    assert not mine.isnan().any(), "a score that no kernel wrote"
    return torch.arange(length) if length <= topk else mine.topk(topk).indices.sort().values


@as_kernel()
def choose(
    *, score: Any, lengths: Any, page_table_size_1: Any, cu_seqlens_q: Any, topk: int, row_starts: Any = None
) -> torch.Tensor:
    """KV slots of each row's tokens [rows, topk]; the table has a row a request."""
    chosen = torch.full((len(score), topk), NO_TOKEN, dtype=torch.int32)
    owner = torch.repeat_interleave(torch.arange(len(cu_seqlens_q) - 1), cu_seqlens_q.long().diff())
    assert len(score) == len(lengths) == len(owner), (len(score), len(lengths), len(owner))
    for row, length in enumerate(lengths.tolist()):
        start = 0 if row_starts is None else int(row_starts[row])
        best = _best(score[row, start : start + length], min(length, score.shape[1] - start), topk)
        chosen[row, : len(best)] = page_table_size_1[owner[row]][best].to(torch.int32)
    return chosen


@as_kernel()
def plan_choice(lengths: torch.Tensor, static_threshold: int = 0) -> torch.Tensor:
    assert lengths.dtype == torch.int32
    return torch.zeros((len(lengths) + 1, 4), dtype=torch.int32)


@as_kernel("out")
def choose_paged(scores: Any, lengths: Any, tables: Any, out: Any, page_size: int, plan: Any) -> None:
    assert scores.stride(0) % 4 == 0 and len(scores) == len(lengths) == len(tables) == len(plan) - 1
    out.fill_(NO_TOKEN)
    for row, length in enumerate(lengths.tolist()):
        best = _best(scores[row], length, out.shape[1])
        out[row, : len(best)] = (tables[row].long()[best // page_size] * page_size + best % page_size).to(
            torch.int32
        )


@as_kernel()
def attend_to_chosen(
    *, q: Any, kv: Any, indices: Any, sm_scale: float, d_v: int, topk_length: Any = None, **sink: None
) -> tuple[torch.Tensor, None, None]:
    """Each row on its own slots."""
    assert not any(sink.values())
    out = q.new_empty((*q.shape[:2], d_v))
    assert len(q) == len(indices)
    for row in range(len(q)):
        slots = indices[row, 0].long()
        slots = slots[slots != NO_TOKEN]
        assert topk_length is None or len(slots) == int(topk_length[row])
        keys = kv[slots]
        out[row] = attend_wide(q[row : row + 1], keys, keys[..., :d_v], sm_scale, False)[0]
    return out, None, None


@as_kernel(
    "cache_seqlens",
    "cu_seqlens_k",
    "page_table_1",
    "dsa_cache_seqlens",
    "dsa_cu_seqlens_k",
    "real_page_table",
)
def set_decode_metadata(
    seq_lens: Any,
    req_pool_indices: Any,
    req_to_token: Any,
    cache_seqlens: Any,
    cu_seqlens_k: Any,
    page_table_1: Any,
    dsa_cache_seqlens: Any,
    dsa_cu_seqlens_k: Any,
    real_page_table: Any,
    bs: int,
    max_len: int,
    dsa_index_topk: int,
    **page: int,
) -> None:
    """In place, as captured kernels need it. `page` is its size, by the name that a release has for it."""
    [page_size] = page.values()
    write_lengths(seq_lens, cache_seqlens, cu_seqlens_k)
    write_lengths(seq_lens.clamp(max=dsa_index_topk), dsa_cache_seqlens, dsa_cu_seqlens_k)
    table = req_to_token[req_pool_indices, :max_len]
    if page_table_1 is not None:
        page_table_1[:bs, :max_len].copy_(table)
    real_page_table[:bs].copy_(table[:, ::page_size] // page_size)


def write_lengths(lengths: Any, place: Any, bounds: Any) -> None:
    """In place: how many tokens each row sees, and where its tokens begin among those of all rows."""
    place[: len(lengths)].copy_(lengths)
    bounds[0] = 0
    bounds[1 : len(lengths) + 1].copy_(torch.cumsum(lengths, 0))
