"""Expert traffic in Triton. Up to SMALL ids: one program. More: a program per block, then one to add them up.

A decode step's 16 to 256 rows fit the one program, which keeps its histograms in registers and only adds to
memory: it is bound by the launch, a few microseconds, and does not grow with the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sglang_layered_kernels.expert_traffic.layout import LayerCounters

BLOCK = 1024  # ids of one histogram
SMALL = 4 * BLOCK  # most ids that one program counts


@triton.jit
def _block_histograms(
    ids_ptr, start, end, cut, row_stride, column_stride,
    TOP_K: tl.constexpr, NUM_EXPERTS: tl.constexpr, NUM_BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = start + tl.arange(0, BLOCK)
    offset = (index // TOP_K).to(tl.int64) * row_stride + (index % TOP_K) * column_stride
    ids = tl.load(ids_ptr + offset, mask=index < end, other=-1)
    is_known = (ids >= 0) & (ids < NUM_EXPERTS)
    bins = tl.where(is_known, ids, 0).to(tl.int32)
    prompt = tl.histogram(bins, NUM_BINS, mask=is_known & (index < cut))
    decode = tl.histogram(bins, NUM_BINS, mask=is_known & (index >= cut))
    return prompt, decode, tl.sum((ids >= NUM_EXPERTS).to(tl.int32))


@triton.jit
def _cut_and_end(split, num_ids, TOP_K: tl.constexpr, SPLIT_ON_DEVICE: tl.constexpr):
    """The first id of decode rows, and the end of the ids that count."""
    if SPLIT_ON_DEVICE:
        cut, end = tl.load(split) * TOP_K, tl.minimum(tl.load(split + 1) * TOP_K, num_ids)
    else:
        cut, end = split * TOP_K, num_ids
    return cut, end


@triton.jit
def _add_call(
    prompt, decode, num_strays, tokens_ptr, totals_ptr, NUM_EXPERTS: tl.constexpr, NUM_BINS: tl.constexpr
):
    bins = tl.arange(0, NUM_BINS)
    tl.atomic_add(tokens_ptr + bins, prompt.to(tl.int64), mask=prompt > 0, sem="relaxed")
    tl.atomic_add(tokens_ptr + NUM_EXPERTS + bins, decode.to(tl.int64), mask=decode > 0, sem="relaxed")
    prompt_experts = tl.sum((prompt > 0).to(tl.int64))
    decode_experts = tl.sum((decode > 0).to(tl.int64))
    union_experts = tl.sum(((prompt > 0) | (decode > 0)).to(tl.int64))
    one = tl.full([], 1, tl.int64)
    tl.atomic_add(totals_ptr, one, sem="relaxed")  # columns: layout.TOTALS
    tl.atomic_add(totals_ptr + 1, (prompt_experts > 0).to(tl.int64), sem="relaxed")
    tl.atomic_add(totals_ptr + 2, (decode_experts > 0).to(tl.int64), sem="relaxed")
    tl.atomic_add(totals_ptr + 3, prompt_experts, sem="relaxed")
    tl.atomic_add(totals_ptr + 4, decode_experts, sem="relaxed")
    tl.atomic_add(totals_ptr + 5, union_experts, sem="relaxed")
    tl.atomic_add(totals_ptr + 6, num_strays.to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["num_ids", "split"])
def count_small(
    ids_ptr, split, tokens_ptr, totals_ptr, num_ids, row_stride, column_stride,
    TOP_K: tl.constexpr, NUM_EXPERTS: tl.constexpr, NUM_BINS: tl.constexpr, BLOCK: tl.constexpr,
    SPLIT_ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Count a call in one program."""
    cut, end = _cut_and_end(split, num_ids, TOP_K, SPLIT_ON_DEVICE)
    prompt = tl.zeros([NUM_BINS], tl.int32)
    decode = tl.zeros([NUM_BINS], tl.int32)
    num_strays = tl.zeros([], tl.int32)
    for start in range(0, end, BLOCK):
        of_prompt, of_decode, of_strays = _block_histograms(
            ids_ptr, start, end, cut, row_stride, column_stride, TOP_K, NUM_EXPERTS, NUM_BINS, BLOCK
        )
        prompt += of_prompt
        decode += of_decode
        num_strays += of_strays
    _add_call(prompt, decode, num_strays, tokens_ptr, totals_ptr, NUM_EXPERTS, NUM_BINS)


@triton.jit(do_not_specialize=["num_ids", "split"])
def gather_blocks(
    ids_ptr, split, scratch_ptr, num_ids, row_stride, column_stride,
    TOP_K: tl.constexpr, NUM_EXPERTS: tl.constexpr, NUM_BINS: tl.constexpr, BLOCK: tl.constexpr,
    SPLIT_ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Add each block's histograms to the scratch: prompt bins, decode bins, number of stray ids."""
    cut, end = _cut_and_end(split, num_ids, TOP_K, SPLIT_ON_DEVICE)
    start = tl.program_id(0) * BLOCK
    prompt, decode, num_strays = _block_histograms(
        ids_ptr, start, end, cut, row_stride, column_stride, TOP_K, NUM_EXPERTS, NUM_BINS, BLOCK
    )
    bins = tl.arange(0, NUM_BINS)
    tl.atomic_add(scratch_ptr + bins, prompt, mask=prompt > 0, sem="relaxed")
    tl.atomic_add(scratch_ptr + NUM_BINS + bins, decode, mask=decode > 0, sem="relaxed")
    tl.atomic_add(scratch_ptr + 2 * NUM_BINS, num_strays, sem="relaxed")


@triton.jit
def fold_scratch(
    scratch_ptr, tokens_ptr, totals_ptr, NUM_EXPERTS: tl.constexpr, NUM_BINS: tl.constexpr
):  # fmt: skip
    """Count a call from the scratch, and leave the scratch zero."""
    bins = tl.arange(0, NUM_BINS)
    prompt = tl.load(scratch_ptr + bins)
    decode = tl.load(scratch_ptr + NUM_BINS + bins)
    num_strays = tl.load(scratch_ptr + 2 * NUM_BINS)
    tl.store(scratch_ptr + bins, tl.zeros([NUM_BINS], tl.int32))
    tl.store(scratch_ptr + NUM_BINS + bins, tl.zeros([NUM_BINS], tl.int32))
    tl.store(scratch_ptr + 2 * NUM_BINS, tl.zeros([], tl.int32))
    _add_call(prompt, decode, num_strays, tokens_ptr, totals_ptr, NUM_EXPERTS, NUM_BINS)


def num_bins(num_experts: int) -> int:
    """Bins of a histogram: a power of two, at least a warp."""
    return max(32, triton.next_power_of_2(num_experts))


def scratch_numel(num_experts: int) -> int:
    """Elements of the int32 scratch that `count` needs, zero before its first use."""
    return 2 * num_bins(num_experts) + 1


def count(topk_ids: torch.Tensor, split: int | torch.Tensor, counters: LayerCounters) -> None:
    """Add one call to a layer's counters, in place. Nothing is allocated and nothing waits.

    Calls that share a scratch must be ordered: one stream, or streams that wait for each other.

    Args:
        topk_ids: int32 or int64 [num_rows, top_k] experts of each row, any strides; ids below 0 do not count.
        split: rows [0, split) are prompt rows; an int (a CUDA graph keeps the captured one) or an integer
            tensor of two on the device: prompt rows, and rows that count (a CUDA graph reads it in each
            replay, so its padding does not count).
        counters: the layer's.

    """
    num_experts = counters.tokens.shape[1]
    num_ids, top_k = topk_ids.numel(), topk_ids.shape[1]
    shape = {
        "TOP_K": top_k,
        "NUM_EXPERTS": num_experts,
        "NUM_BINS": num_bins(num_experts),
        "BLOCK": BLOCK,
        "SPLIT_ON_DEVICE": isinstance(split, torch.Tensor),
    }
    place = (num_ids, topk_ids.stride(0), topk_ids.stride(1))
    if num_ids <= SMALL:
        count_small[(1,)](topk_ids, split, counters.tokens, counters.totals, *place, **shape)
        return
    blocks = (triton.cdiv(num_ids, BLOCK),)
    gather_blocks[blocks](topk_ids, split, counters.scratch, *place, **shape)
    bins = {"NUM_EXPERTS": num_experts, "NUM_BINS": num_bins(num_experts)}
    fold_scratch[(1,)](counters.scratch, counters.tokens, counters.totals, **bins)
