"""Random group-attention cases: a pool whose pages are dealt at random and requests that own some of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from sglang_layered_kernels.group_attention import AttentionShape, PageTables, page_tables
from sglang_layered_kernels.group_attention.reference import group_attention_reference

PAGE_SIZES = (1, 16, 64)
UNUSED = -(10**6)  # in req_to_token beyond a request's tokens: reading it is an error


@dataclass(frozen=True)
class Sizes:
    """Prompts as (prefix, new tokens), decode rows as their contexts."""

    page_size: int
    prompts: tuple[tuple[int, int], ...]
    contexts: tuple[int, ...]
    num_kv_heads: int = 2
    group: int = 4
    head_dim: int = 64
    window_left: int = -1
    soft_cap: float = 0.0
    seed: int = 0

    @property
    def query_lens(self) -> list[int]:
        return [new for _, new in self.prompts] + [1 for _ in self.contexts]

    @property
    def kv_lens(self) -> list[int]:
        return [prefix + new for prefix, new in self.prompts] + list(self.contexts)


class Case:
    """The tensors of `Sizes`. Slots that no request owns hold NaN, so that reading one shows."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
        self.sizes = sizes
        generator = torch.Generator().manual_seed(sizes.seed)
        page, lengths = sizes.page_size, sizes.kv_lens
        num_pages = [-(-length // page) for length in lengths]
        spare = 3
        deal = torch.randperm(sum(num_pages) + spare, generator=generator).tolist()
        order = torch.randperm(len(lengths) + 2, generator=generator)[: len(lengths)]
        table = torch.full((len(lengths) + 2, max(lengths) + 5), UNUSED, dtype=torch.int32)
        slots = (sum(num_pages) + spare) * page
        caches = [torch.full((slots, sizes.num_kv_heads, sizes.head_dim), torch.nan) for _ in range(2)]
        for row, length, count in zip(order.tolist(), lengths, num_pages, strict=True):
            mine = [deal.pop() for _ in range(count)]
            for token in range(length):
                slot = mine[token // page] * page + token % page
                table[row, token] = slot
        owned = table[table != UNUSED].long()
        for cache in caches:
            cache[owned] = torch.randn((len(owned), *cache.shape[1:]), generator=generator)
        num_heads = sizes.num_kv_heads * sizes.group
        q = torch.randn((sum(sizes.query_lens), num_heads, sizes.head_dim), generator=generator)
        self.req_to_token, self.table_rows = table.to(device), order.to(device)
        self.q = q.to(device, dtype)
        self.kv_cache = (caches[0].to(device, dtype), caches[1].to(device, dtype))
        self.shape = AttentionShape(
            num_heads,
            sizes.num_kv_heads,
            sizes.head_dim,
            page,
            1.3 * sizes.head_dim**-0.5,
            dtype,
            sizes.window_left,
            sizes.soft_cap,
        )

    def tables(self) -> tuple[PageTables, PageTables]:
        """Page tables of the prompts and of the decode rows."""
        cut = len(self.sizes.prompts)
        return self._tables(slice(None, cut)), self._tables(slice(cut, None))

    def _tables(self, requests: slice) -> PageTables:
        return page_tables(
            self.req_to_token,
            self.table_rows[requests],
            self.sizes.query_lens[requests],
            self.sizes.kv_lens[requests],
            page_size=self.sizes.page_size,
            window_left=self.sizes.window_left,
        )

    def reference(self) -> torch.Tensor:
        return group_attention_reference(
            self.q,
            self.kv_cache,
            self.req_to_token,
            self.table_rows.tolist(),
            self.sizes.query_lens,
            self.sizes.kv_lens,
            scale=self.shape.scale,
            window_left=self.sizes.window_left,
            soft_cap=self.sizes.soft_cap,
        )


def sizes(max_prompts: int = 3, max_decode: int = 24, max_context: int = 90) -> st.SearchStrategy[Sizes]:
    prompt = st.tuples(st.sampled_from([0, 0, 1, 15, 16, 64, 150]), st.integers(1, 40))
    return st.builds(
        Sizes,
        page_size=st.sampled_from(PAGE_SIZES),
        prompts=st.lists(prompt, min_size=1, max_size=max_prompts).map(tuple),
        contexts=st.lists(st.integers(1, max_context), min_size=1, max_size=max_decode).map(tuple),
        num_kv_heads=st.sampled_from([1, 2]),
        group=st.sampled_from([1, 4, 8]),
        head_dim=st.sampled_from([64, 128]),
        window_left=st.sampled_from([-1, -1, 0, 7, 64]),
        seed=st.integers(0, 10**6),
    )


MATRIX = [
    Sizes(page, prompts, tuple(range(3, 3 + 5 * rows, 5)), 1, group, head_dim, window)
    for page in PAGE_SIZES
    for prompts, rows, group, head_dim, window in (
        (((0, 33),), 1, 1, 64, -1),
        (((200, 17),), 16, 4, 128, -1),
        (((0, 20), (130, 9)), 40, 8, 64, -1),
        (((170, 25), (0, 5), (64, 64)), 256, 4, 64, -1),
        (((100, 30),), 30, 8, 128, 50),
        (((0, 80), (90, 3)), 30, 4, 64, 15),
    )
]
