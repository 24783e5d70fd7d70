"""CPU references of the functions that write the request table and move KV slots; they work in place."""

import ctypes

import torch

from sglang_layered.errors import CpuKernelError


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write each request's new KV slots into columns [start, end) of its row of the request table, in place.

    Args:
        req_pool_indices: [num_reqs] row of each request in the table.
        req_to_token: [num_rows, pool_len] the table: KV slot of each token position.
        start_offset: [num_reqs] first position to write, inclusive.
        end_offset: [num_reqs] last position to write, exclusive; not below `start_offset`.
        out_cache_loc: [>= sum(end - start)] new slots, request after request.
        pool_len: number of columns of the table.

    """
    _check_table(req_to_token, pool_len)
    starts, ends = start_offset.tolist(), end_offset.tolist()
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    if min([*starts, *lengths, 0]) < 0 or max([*ends, 0]) > pool_len or sum(lengths) > out_cache_loc.numel():
        raise CpuKernelError(
            f"assign_req_to_token_pool_cpu: ranges {starts} to {ends} do not fit "
            f"a table of {pool_len} columns and {out_cache_loc.numel()} slots"
        )
    pieces = out_cache_loc[: sum(lengths)].to(req_to_token.dtype).split(lengths)
    for row, start, end, piece in zip(req_pool_indices.tolist(), starts, ends, pieces, strict=True):
        req_to_token[row, start:end] = piece


def _check_table(req_to_token: torch.Tensor, pool_len: int) -> None:
    if req_to_token.dim() != 2 or req_to_token.shape[1] != pool_len:
        shape = tuple(req_to_token.shape)
        raise CpuKernelError(
            f"assign_req_to_token_pool_cpu: table of shape {shape}, expected (rows, {pool_len})"
        )


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor, strides: torch.Tensor, tgt_loc: torch.Tensor, src_loc: torch.Tensor
) -> None:
    """Copy KV slots `src_loc` to `tgt_loc` in every buffer; all slots are read before the first is written.

    Args:
        data_ptrs: [num_buffers] uint64 address of each contiguous K or V buffer.
        strides: [num_buffers] bytes of one slot in that buffer.
        tgt_loc: [num_slots] slots to write, without repeats.
        src_loc: [num_slots] slots to read.

    """
    if tgt_loc.shape != src_loc.shape:
        raise CpuKernelError(
            f"copy_all_layer_kv_cache_cpu: {tgt_loc.numel()} targets, {src_loc.numel()} sources"
        )
    if tgt_loc.numel() == 0:
        return
    targets, sources = tgt_loc.long(), src_loc.long()
    lowest = min(int(targets.min()), int(sources.min()))
    if lowest < 0:
        raise CpuKernelError(f"copy_all_layer_kv_cache_cpu: slot {lowest} is below 0")
    num_slots = max(int(targets.max()), int(sources.max())) + 1
    for address, slot_bytes in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        slots = _slots_at(address, num_slots, slot_bytes)
        slots[targets] = slots[sources]


def _slots_at(address: int, num_slots: int, slot_bytes: int) -> torch.Tensor:
    """Return the memory at `address` as a [num_slots, slot_bytes] tensor of bytes, without copying it."""
    memory = (ctypes.c_uint8 * (num_slots * slot_bytes)).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8).view(num_slots, slot_bytes)
