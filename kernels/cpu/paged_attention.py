"""Attention of one request's last rows on a CPU, in torch, without computing any other row.

The rows of a prompt, and drafts to verify, see two kinds of keys: all tokens before the rows, in whatever
order, and of the rows those up to themselves or, in a tree of drafts, those above them. Both go to torch's
flash attention, the tokens before in pieces, as they lie in memory. The log of a call's summed weights joins
them, and lets a sink in. `slots.py` reads the pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional

from sglang_layered.errors import CpuKernelError

BLOCK_ROWS = 256  # rows that share a mask
MAX_SCORES = 1 << 22  # scores that are kept at a time where torch's flash attention cannot be used


@dataclass(frozen=True, slots=True)
class Weighing:
    """How a layer weighs keys.

    With score s_j of key j, times `scale`, a `soft_cap` c (0: none) makes it c tanh(s_j / c). A row sees
    `window_left` keys before its own (-1: all). A sink z, of `sinks` [heads], is a logit without a value:
    key j weighs exp(s_j) / (exp(z) + sum_k exp(s_k)).
    """

    scale: float
    window_left: int = -1
    soft_cap: float = 0.0
    sinks: torch.Tensor | None = None

    def first_key(self, position: int) -> int:
        """The first key that a row at a position sees."""
        return max(position - self.window_left, 0) if self.window_left >= 0 else 0


KeysValues = tuple[torch.Tensor, torch.Tensor]
"""[tokens, kv heads, key size] and [tokens, kv heads, value size], values no larger than keys."""


def attend(
    query: torch.Tensor,
    own: KeysValues | None,
    others: Iterable[KeysValues],
    how: Weighing,
    tree: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of one request's last rows, where all of them see all tokens before them.

    Args:
        query: [rows, heads, key size], the last rows of the request.
        own: Keys and values of the rows themselves; None for a single row, whose own are among the others.
        others: Keys and values of the tokens before the rows, in pieces, in any order. May be read lazily:
            each piece is done with before the next one is asked for, and `own` before the first.
        how: Of the layer; no window that hides any of these tokens, and no soft cap.
        tree: [rows, rows] bool: which rows a row sees, itself and those above it; None: all before it.

    Returns:
        [rows, heads, value size].
    """
    attended: Attended | None = None
    if own is not None:
        mask = None if tree is None else _added(~tree, query.dtype)
        rows = _by_kv_head(query, own[0])
        attended = _spread(rows, *_heads_first(own), how.scale, mask, is_causal=tree is None)
    for piece in others:
        seen = _folded(_by_kv_head(query, piece[0]), *_heads_first(piece), how.scale)
        attended = seen if attended is None else _joined(attended, seen)
    if attended is None:
        raise CpuKernelError("attention over no keys")
    return _rows_first(*attended, how)


def attend_in_order(
    query: torch.Tensor, tokens: KeysValues, how: Weighing, tree: torch.Tensor | None = None
) -> torch.Tensor:
    """Causal attention of one request's last rows in any layer; a few rows at a time over the keys they see.

    Args:
        query: [rows, heads, key size], the last rows of the request.
        tokens: Keys and values, oldest first, the rows' own included; may begin at the first that a row sees.
        how: Of the layer.
        tree: As `attend` takes it, rows below those above them. A row's position is that in its own branch.

    Returns:
        [rows, heads, value size].
    """
    attended = _in_blocks(_by_kv_head(query, tokens[0]), *_heads_first(tokens), how, tree)
    return _rows_first(*attended, how)


Attended = tuple[torch.Tensor, torch.Tensor]
"""Outputs [kv heads, share, rows, value size], and logs of rows' summed weights [kv heads, share, rows]."""


def _by_kv_head(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[kv heads, share, rows, key size]."""
    return query.unflatten(1, (keys.shape[1], -1)).permute(1, 2, 0, 3)


def _heads_first(tokens: KeysValues) -> KeysValues:
    return tokens[0].movedim(0, 1), tokens[1].movedim(0, 1)


def _rows_first(outputs: torch.Tensor, logs: torch.Tensor, how: Weighing) -> torch.Tensor:
    """[rows, heads, value size], with the heads' sinks."""
    if how.sinks is not None:
        sinks = how.sinks.to(logs.dtype).view(*logs.shape[:2], 1)
        outputs = outputs * torch.sigmoid(logs - sinks).unsqueeze(-1).to(outputs.dtype)
    return outputs.permute(2, 0, 1, 3).flatten(1, 2)


def _in_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: Weighing, tree: torch.Tensor | None
) -> Attended:
    at_most = MAX_SCORES // (q.shape[0] * q.shape[1] * k.shape[1]) if how.soft_cap else BLOCK_ROWS
    step, parts, past = min(max(at_most, 1), BLOCK_ROWS), [], k.shape[1] - q.shape[2]
    position = torch.arange(k.shape[1])
    if tree is not None:
        position[past:] = past + tree.sum(-1) - 1
    for start in range(0, q.shape[2], step):
        rows = q[:, :, start : start + step]
        end = past + start + rows.shape[2]
        own = position[past + start : end, None]
        first = how.first_key(past if tree is not None else past + start)
        hidden = position[first:end] > own
        if tree is not None:
            hidden[:, past - first :] = ~tree[start : start + step, : end - past]
        if how.window_left >= 0:
            hidden |= position[first:end] < own - how.window_left
        mask, seen = _added(hidden, q.dtype), (k[:, first:end], v[:, first:end])
        if how.soft_cap:
            parts.append(_capped(rows, *seen, mask, how))
        else:
            parts.append(_spread(rows, *seen, how.scale, mask))
    outputs, logs = zip(*parts, strict=True)
    return torch.cat(outputs, dim=2), torch.cat(logs, dim=2)


def _added(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores so that these are not seen."""
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _capped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, how: Weighing) -> Attended:
    """With the scores in memory: torch's flash attention has no place for a cap."""
    num_kv_heads, share, num_rows, _ = q.shape
    scores = (q.reshape(num_kv_heads, share * num_rows, -1) @ k.transpose(1, 2)).to(_wide(q.dtype))
    scores = scores.mul_(how.scale / how.soft_cap).tanh_().mul_(how.soft_cap)
    scores = scores.view(num_kv_heads, share, num_rows, -1) + mask
    logs = scores.logsumexp(-1)
    weights = scores.sub_(logs.unsqueeze(-1)).exp_().to(v.dtype).view(num_kv_heads, share * num_rows, -1)
    return (weights @ v).view(num_kv_heads, share, num_rows, -1), logs


def _folded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Attended:
    """Every row sees every key: rows of the heads that share keys are rows of one product."""
    num_kv_heads, share, num_rows, size = q.shape
    rows = q.reshape(1, num_kv_heads, share * num_rows, size)
    outputs, logs = _flash(rows, k.unsqueeze(0), v.unsqueeze(0), scale)
    return outputs.view(num_kv_heads, share, num_rows, -1), logs.view(num_kv_heads, share, num_rows)


def _spread(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> Attended:
    """Heads that share keys one by one; the keys are not copied for them."""
    keys, values = (part.unsqueeze(1).expand(-1, q.shape[1], -1, -1) for part in (k, v))
    return _flash(q, keys, values, scale, mask, is_causal)


def _flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> Attended:
    size = v.shape[-1]
    if size < k.shape[-1]:  # the kernel takes values of the keys' size only
        v = functional.pad(v, (0, k.shape[-1] - size))
    # The operator behind scaled_dot_product_attention, which keeps the logs to itself.
    outputs, logs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale
    )
    return outputs[..., :size], logs


def _joined(one: Attended, other: Attended) -> Attended:
    """Attention over two sets of keys together."""
    logs = torch.logaddexp(one[1], other[1])
    outputs = sum(part * (log - logs).exp().unsqueeze(-1).to(part.dtype) for part, log in (one, other))
    return outputs, logs


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
