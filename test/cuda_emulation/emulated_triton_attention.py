"""The two kernels of SGLang's Triton attention in plain torch; its plans stay Triton, interpreted."""

from __future__ import annotations

from typing import Any

import torch
from flashinfer_emulation import attend

from memory_watch import as_kernel


def emulate_triton_attention() -> None:
    """Put them where the backend imports the kernels."""
    import sglang.kernels.ops.attention.decode_attention as decode
    import sglang.kernels.ops.attention.extend_attention as extend

    decode.decode_attention_fwd = attend_decode
    extend.extend_attention_fwd = attend_extend


@as_kernel("o", "attn_logits")
def attend_decode(
    q: Any,
    k_buffer: Any,
    v_buffer: Any,
    o: Any,
    kv_indptr: Any,
    kv_indices: Any,
    attn_logits: Any,
    attn_lse: Any,
    num_kv_splits: Any,
    max_kv_splits: int,
    sm_scale: float,
    *scales: Any,
    **others: Any,
) -> None:
    """One row a request; rows beyond the plan's requests would read bounds of nobody."""
    bounds = kv_indptr.tolist()
    assert len(q) == len(bounds) - 1, f"the plan has {len(bounds) - 1} rows, attention got {len(q)}"
    assert bool((num_kv_splits[: len(q)] >= 1).all()), "rows without a planned split"
    attn_logits[:1].fill_(0)
    # Graphs of drafts were captured with the first few of these: the kernel knows no length, and reads on.
    room = kv_indices.untyped_storage().nbytes() // kv_indices.itemsize - kv_indices.storage_offset()
    assert bounds[-1] <= room, f"{bounds[-1]} slots in a table of {room}"
    kv_indices = kv_indices.as_strided((room,), (1,))
    for row in range(len(q)):
        slots = kv_indices[bounds[row] : bounds[row + 1]].long()
        o[row] = _attend(q[row : row + 1], k_buffer, v_buffer, slots, sm_scale)[0]


@as_kernel("o")
def attend_extend(
    q: Any,
    k: Any,
    v: Any,
    o: Any,
    k_buffer: Any,
    v_buffer: Any,
    qo_indptr: Any,
    kv_indptr: Any,
    kv_indices: Any,
    custom_mask: Any,
    is_causal: bool,
    mask_indptr: Any,
    max_len_extend: int,
    k_scale: Any,
    v_scale: Any,
    sm_scale: float,
    *caps: Any,
    skip_prefix_custom_mask: bool = True,
    **others: Any,
) -> None:
    """Rows of prompts or of drafts: the cached prefix by its slots, then the rows' own keys and values.

    Drafts see each other by a mask [rows, prefix and rows] of each request.
    """
    rows, cached = qo_indptr.tolist(), kv_indptr.tolist()
    assert is_causal and skip_prefix_custom_mask
    assert rows[-1] == len(q), f"the plan has {rows[-1]} rows, attention got {len(q)}"
    for index in range(len(rows) - 1):
        mine = slice(rows[index], rows[index + 1])
        assert mine.stop - mine.start <= max_len_extend
        slots = kv_indices[cached[index] : cached[index + 1]].long()
        seen, num_rows = None, mine.stop - mine.start
        if custom_mask is not None:
            start = int(mask_indptr[index])
            end = start + num_rows * (len(slots) + num_rows)
            assert len(mask_indptr) == len(rows) and end <= len(custom_mask)
            seen = custom_mask[start:end].view(num_rows, -1) != 0
            seen[:, : len(slots)] = True  # the kernel looks at the part of the drafts alone
        o[mine] = _attend(q[mine], k_buffer, v_buffer, slots, sm_scale, (k[mine], v[mine]), seen)


def _attend(
    q: Any, k_buffer: Any, v_buffer: Any, slots: Any, sm_scale: float, own: Any = (), mask: Any = None
) -> torch.Tensor:
    seen = [part.reshape(-1, *part.shape[-2:])[slots] for part in (k_buffer, v_buffer)]
    if own:
        seen = [torch.cat(pair) for pair in zip(seen, own, strict=True)]
    keys, values = (part.float() for part in seen)
    out = attend(q.float(), keys, values, causal=mask is None, sm_scale=sm_scale, window_left=-1, seen=mask)
    return out.to(q.dtype)
