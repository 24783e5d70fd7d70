"""Page tables gather exactly the right slots; the oracle is a loop over tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from sglang_layered_kernels.group_attention import PageTables, page_tables

from group_cases import Case, Sizes, sizes


def slots_by_request(tables: PageTables) -> list[list[int]]:
    """Read the tables as FlashInfer documents them."""
    found, page = [], tables.page_size
    for index in range(tables.num_requests):
        pages = tables.kv_indices[tables.kv_indptr[index] : tables.kv_indptr[index + 1]].tolist()
        slots = [number * page + inside for number in pages for inside in range(page)]
        found.append(slots[: len(slots) - page + int(tables.last_page_len[index])])
    return found


def slots_by_token(case: Case, first: int, end: int) -> list[list[int]]:
    """Oracle: from the page of the oldest token that any query row sees, every token's slot."""
    own = case.sizes
    found = []
    for request in range(first, end):
        query_len, kv_len = own.query_lens[request], own.kv_lens[request]
        seen = {
            key
            for position in range(kv_len - query_len, kv_len)
            for key in range(position + 1)
            if own.window_left < 0 or key >= position - own.window_left
        }
        start = min(seen)
        while start % own.page_size:
            start -= 1
        row = int(case.table_rows[request])
        found.append([int(case.req_to_token[row, token]) for token in range(start, kv_len)])
    return found


@settings(deadline=None, max_examples=80)
@given(sizes=sizes())
def test_tables_name_the_slots_that_a_loop_over_tokens_finds(sizes: Sizes) -> None:
    case = Case(sizes)
    cut, count = len(sizes.prompts), len(sizes.kv_lens)
    prompt, decode = case.tables()
    assert slots_by_request(prompt) == slots_by_token(case, 0, cut)
    assert slots_by_request(decode) == slots_by_token(case, cut, count)
    assert prompt.qo_indptr.diff().tolist() == sizes.query_lens[:cut]
    assert decode.qo_indptr.tolist() == list(range(count - cut + 1))
    assert (prompt.num_rows, decode.num_rows) == (sum(sizes.query_lens[:cut]), count - cut)
    if cut == 1:
        assert prompt.only_slots().tolist() == slots_by_token(case, 0, 1)[0]


@pytest.mark.parametrize("num_rows", [1, 2, 255, 256])
@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_many_decode_rows(page_size: int, num_rows: int) -> None:
    case = Case(Sizes(page_size, ((0, 1),), tuple(1 + 7 * row for row in range(num_rows)), head_dim=1))
    assert slots_by_request(case.tables()[1]) == slots_by_token(case, 1, num_rows + 1)


def test_lengths_may_be_lists_or_tensors_on_the_host() -> None:
    table = torch.arange(40, dtype=torch.int32).view(2, 20)
    from_lists = page_tables(table, torch.tensor([1, 0]), [2, 1], [20, 5], page_size=4)
    from_tensors = page_tables(
        table, torch.tensor([1, 0]), torch.tensor([2, 1]), torch.tensor([20, 5]), page_size=4
    )
    assert slots_by_request(from_lists) == [list(range(20, 40)), list(range(5))]
    assert slots_by_request(from_tensors) == slots_by_request(from_lists)


@pytest.mark.parametrize(("queries", "keys"), [([0], [4]), ([5], [4]), ([1, 1], [4, 4])])
def test_lengths_that_cannot_be_are_an_error(queries: list[int], keys: list[int]) -> None:
    with pytest.raises(AssertionError, match="query lengths"):
        page_tables(torch.zeros((1, 8), dtype=torch.int32), torch.tensor([0]), queries, keys, page_size=1)
