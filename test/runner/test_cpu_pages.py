"""Slots on KV pages of several tokens are found without Triton, as its kernels find them on a GPU."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator

from sglang_layered.upstream.releases import requests

requests.allocate_pages_by_torch()


class Pool:
    """SGLang's allocator, and requests that take their slots one by one, a page when one is full."""

    def __init__(self, num_pages: int, page: int) -> None:
        self.page, self.slots = page, list[list[int]]()
        self.real = PagedTokenToKVPoolAllocator(num_pages * page, page, torch.float32, "cpu", None, False)

    def grown(self, more: list[int]) -> list[int]:
        """The slots of so many next tokens of each request."""
        pages, found = self.real.free_pages.tolist(), list[int]()
        for slots, count in zip(self.slots, more, strict=True):
            for _ in range(count):
                slots.append(slots[-1] + 1 if len(slots) % self.page else pages.pop(0) * self.page)
                found.append(slots[-1])
        return found

    def sizes(self, more: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens of each request before and after, and the slot of its last one."""
        before = torch.tensor([len(slots) for slots in self.slots])
        last = torch.tensor([slots[-1] if slots else -1 for slots in self.slots])
        return before, before + torch.tensor(more), last


@given(
    page=st.sampled_from([2, 4, 16]),
    turns=st.integers(1, 3).flatmap(
        lambda num: st.lists(st.lists(st.integers(1, 40), min_size=num, max_size=num), min_size=1, max_size=4)
    ),
)
def test_slots_are_those_of_requests_that_take_them_one_by_one(page: int, turns: list[list[int]]) -> None:
    pool = Pool(200, page)
    pool.slots = [[] for _ in turns[0]]
    for more in turns:
        before, after, last = pool.sizes(more)
        expected = pool.grown(more)
        assert pool.real.alloc_extend(before, before, after, after, last, sum(more)).tolist() == expected
        one = [1] * len(more)
        _, after, last = pool.sizes(one)
        expected = pool.grown(one)
        assert pool.real.alloc_decode(after, after, last).tolist() == expected


def test_with_too_few_pages_there_is_none() -> None:
    pool = Pool(2, 4)
    zero = torch.zeros(1, dtype=torch.long)
    assert pool.real.alloc_extend(zero, zero, zero + 9, zero + 9, zero - 1, 9) is None
    assert pool.real.alloc_extend(zero, zero, zero + 8, zero + 8, zero - 1, 8).tolist() == list(range(4, 12))
    assert pool.real.alloc_decode(zero + 9, zero + 9, zero + 11) is None
