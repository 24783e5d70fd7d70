"""Page tables in FlashInfer's form, from per-request lengths and SGLang's req_to_token table.

Knows no wrapper, no layer and no ForwardBatch. Works on any device and never waits for one: what the host
must know comes from lengths that it already has; only the page numbers are gathered where the table lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Lengths: TypeAlias = Sequence[int] | npt.NDArray[np.int64] | torch.Tensor


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What is the same in every step and in every layer that shares a kernel.

    `scale` multiplies the scores before the softmax. `window_left` is how many keys before its own a query
    sees (-1: all). `soft_cap` bounds the scores (0: no bound).
    """

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    scale: float
    dtype: torch.dtype
    window_left: int = -1
    soft_cap: float = 0.0

    def paged(self, cache: torch.Tensor) -> torch.Tensor:
        """A pool's keys or values [slots, kv heads, head_dim] as [pages, page_size, kv heads, head_dim]."""
        return cache.view(-1, self.page_size, self.num_kv_heads, self.head_dim)

    def plan_arguments(self) -> dict[str, Any]:
        """What every FlashInfer wrapper's `plan` takes by the same names."""
        return {
            "num_qo_heads": self.num_q_heads,
            "num_kv_heads": self.num_kv_heads,
            "page_size": self.page_size,
            "window_left": self.window_left,
            "q_data_type": self.dtype,
            "kv_data_type": self.dtype,
            "sm_scale": self.scale,
        }


@dataclass(frozen=True, slots=True, eq=False)
class PageTables:
    """The pages that the query rows of each request read.

    `qo_indptr` and `kv_indptr` [requests + 1] and `last_page_len` [requests] (tokens in a request's last
    page) are int32 on the host; `kv_indices` [kv_indptr[-1]] holds page numbers, int32, on
    the table's device.
    """

    page_size: int
    qo_indptr: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    last_page_len: torch.Tensor

    @property
    def num_requests(self) -> int:
        """Requests in the batch."""
        return len(self.last_page_len)

    @property
    def num_rows(self) -> int:
        """Query rows of all requests."""
        return int(self.qo_indptr[-1])

    def only_slots(self) -> torch.Tensor:
        """KV slots [keys] of the only request, oldest first, int64, on the table's device."""
        if self.num_requests != 1:
            raise AssertionError(f"slots of one request were asked of {self.num_requests}")
        inside = torch.arange(self.page_size, device=self.kv_indices.device)
        slots = (self.kv_indices.long()[:, None] * self.page_size + inside).flatten()
        return slots[: slots.numel() - self.page_size + int(self.last_page_len[0])]


def page_tables(
    req_to_token: torch.Tensor,
    table_rows: torch.Tensor,
    query_lens: Lengths,
    kv_lens: Lengths,
    *,
    page_size: int,
    window_left: int = -1,
) -> PageTables:
    """Tables for requests whose last `query_lens[i]` of `kv_lens[i]` tokens are query rows.

    Args:
        req_to_token: KV slot of each token [table rows, max tokens]. A page's slots follow each other and its
            first slot is a multiple of the page size, as SGLang allocates them.
        table_rows: Row of each request in that table [requests], on the table's device.
        query_lens: New tokens of each request, 1 or more.
        kv_lens: All tokens of each request, the new ones included.
        page_size: Tokens in a page.
        window_left: Keys before its own that a query sees; pages that no query row sees are left out.
    """
    queries, keys = _host(query_lens), _host(kv_lens)
    if not len(queries) == len(keys) == len(table_rows) or (queries < 1).any() or (keys < queries).any():
        raise AssertionError(f"{len(table_rows)} requests with query lengths {queries} of {keys}")
    first = np.zeros_like(keys)
    if window_left >= 0:
        first = np.maximum(keys - queries - window_left, 0) // page_size * page_size
    num_pages = -(-(keys - first) // page_size)
    ends = np.cumsum(num_pages)
    return PageTables(
        page_size=page_size,
        qo_indptr=_indptr(np.cumsum(queries)),
        kv_indptr=_indptr(ends),
        kv_indices=_gather(req_to_token, table_rows, first, num_pages, page_size),
        last_page_len=torch.from_numpy(((keys - first - 1) % page_size + 1).astype(np.int32)),
    )


def _gather(
    req_to_token: torch.Tensor,
    table_rows: torch.Tensor,
    first: npt.NDArray[np.int64],
    num_pages: npt.NDArray[np.int64],
    page_size: int,
) -> torch.Tensor:
    """Page numbers [sum of num_pages], request after request, from token `first[i]` of each on."""
    total = int(num_pages.sum())
    starts = np.cumsum(num_pages) - num_pages
    host = torch.from_numpy(np.stack([num_pages, first - starts * page_size]))
    device = req_to_token.device
    counts, shifts = host.to(device, non_blocking=True)
    request = torch.repeat_interleave(torch.arange(len(num_pages), device=device), counts, output_size=total)
    token = torch.arange(total, device=device) * page_size + shifts[request]
    return (req_to_token[table_rows.long()[request], token] // page_size).to(torch.int32)


def _host(lengths: Lengths) -> npt.NDArray[np.int64]:
    return np.asarray(lengths, dtype=np.int64)


def _indptr(ends: npt.NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
