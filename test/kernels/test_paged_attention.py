"""Attention over the slots of a KV pool, against the reference that takes one row at a time."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_layered_kernels.cpu import paged_attention
from sglang_layered_kernels.cpu.paged_attention import Weighing, attend, attend_in_order
from sglang_layered_kernels.cpu.slots import MIN_PIECE, MIN_RUN, Reader, as_run, in_runs
from sglang_layered_kernels.group_attention.reference import group_attention_reference

NUM_SLOTS, SCALE = 1200, 0.3
HEADS = {"grouped": (4, 2, 8, 8), "one each": (3, 3, 16, 16), "latent": (6, 1, 12, 8)}
TOLERANCE = 1e-6  # sinks and logs of float32 rows pass through float32
PARENTS = {"chain": (0, 1, 2, 3, 4, 5), "tree": (0, 0, 1, 1, 2, 4, 6, 3)}  # of drafts after the first
GENERATOR = torch.Generator().manual_seed(5)


def pool(heads: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values; in latent attention a value is the first part of its key."""
    _, kv_heads, size, value_size = HEADS[heads]
    keys = torch.randn(NUM_SLOTS, kv_heads, size, generator=GENERATOR, dtype=torch.float64)
    if heads == "latent":
        return keys, keys[..., :value_size]
    return keys, torch.randn(NUM_SLOTS, kv_heads, size, generator=GENERATOR, dtype=torch.float64)


def rows_of(heads: str, num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, HEADS[heads][0], HEADS[heads][2], generator=GENERATOR, dtype=torch.float64)


def lying(how: str, num_tokens: int) -> torch.Tensor:
    """Slots of a request: in one run, about, or a run and then every third slot, as after many decodes."""
    if how == "run":
        return torch.arange(40, 40 + num_tokens, dtype=torch.int32)
    if how == "about":
        return torch.randperm(NUM_SLOTS, generator=GENERATOR)[:num_tokens].int()
    run = num_tokens * 2 // 3
    return torch.cat([torch.arange(run), 800 + 3 * torch.arange(num_tokens - run) % 400]).int()


def expected_of(
    query: torch.Tensor, pool: tuple[torch.Tensor, torch.Tensor], slots: torch.Tensor, how: Weighing
) -> torch.Tensor:
    """The reference of the last rows of a request with its tokens at these slots."""
    lengths = ([len(query)], [len(slots)])
    return group_attention_reference(
        query,
        pool,
        slots[None],
        [0],
        *lengths,
        scale=how.scale,
        window_left=how.window_left,
        soft_cap=how.soft_cap,
        sinks=how.sinks,
    )


def attended(
    query: torch.Tensor,
    pool: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    how: Weighing,
    tree: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same rows, read as the backend does."""
    reader, past = Reader(query.dtype), len(slots) - len(query)
    if len(query) == 1:
        return attend(query, None, reader.pieces(*pool, in_runs(slots), 1), how)
    own = reader.read(*pool, as_run(slots[past:]))
    return attend(query, own, reader.pieces(*pool, in_runs(slots[:past]), len(query)), how, tree)


def paths_of(parents: tuple[int, ...]) -> list[list[int]]:
    """Drafts from the first one to each, by their numbers."""
    paths = [[0]]
    for number, parent in enumerate(parents, 1):
        paths.append([*paths[parent], number])
    return paths


@pytest.mark.parametrize("sinks", [None, torch.tensor([0.4, -1.0, 2.0, 0.0, 1.0, 3.0])])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("slots", ["run", "about", "both"])
@pytest.mark.parametrize(("num_rows", "num_tokens"), [(1, 1), (1, 600), (7, 7), (5, 400), (300, 640)])
def test_rows_see_all_before_them(
    num_rows: int, num_tokens: int, slots: str, heads: str, sinks: torch.Tensor | None
) -> None:
    cache, query, at = pool(heads), rows_of(heads, num_rows), lying(slots, num_tokens)
    how = Weighing(SCALE, sinks=None if sinks is None else sinks[: HEADS[heads][0]])
    got, expected = attended(query, cache, at, how), expected_of(query, cache, at, how)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("window", "cap"), [(-1, 0.7), (0, 0.0), (9, 0.0), (9, 0.7), (500, 0.7), (128, 0.0)])
@pytest.mark.parametrize(("num_rows", "num_tokens"), [(1, 60), (7, 7), (40, 200), (300, 310)])
def test_windows_and_soft_caps(
    monkeypatch: pytest.MonkeyPatch, num_rows: int, num_tokens: int, window: int, cap: float, heads: str
) -> None:
    monkeypatch.setattr(paged_attention, "MAX_SCORES", 10_000)  # several blocks of rows
    (keys, values), query = pool(heads), rows_of(heads, num_rows)
    how = Weighing(SCALE, window, cap, torch.linspace(-1, 2, HEADS[heads][0]))
    got = attend_in_order(query, (keys[:num_tokens], values[:num_tokens]), how)
    expected = expected_of(query, (keys, values), torch.arange(num_tokens), how)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("slots", ["run", "both"])
@pytest.mark.parametrize(("window", "cap"), [(-1, 0.0), (2, 0.0), (9, 0.7), (-1, 0.7), (200, 0.0)])
@pytest.mark.parametrize("num_before", [1, 300])
@pytest.mark.parametrize("shape", PARENTS)
def test_a_draft_sees_the_tokens_before_and_those_above_it(
    monkeypatch: pytest.MonkeyPatch,
    shape: str,
    num_before: int,
    window: int,
    cap: float,
    slots: str,
    heads: str,
) -> None:
    """Oracle: each draft as the last row of a chain of those above it."""
    monkeypatch.setattr(paged_attention, "MAX_SCORES", 3_000)  # a few rows at a time
    paths, cache = paths_of(PARENTS[shape]), pool(heads)
    query, at = rows_of(heads, len(paths)), lying(slots, num_before + len(paths))
    tree = torch.zeros(len(paths), len(paths), dtype=torch.bool)
    for row, path in zip(tree, paths, strict=True):
        row[path] = True
    how = Weighing(SCALE, window, cap, torch.linspace(-1, 2, HEADS[heads][0]))
    keys, values = (part[at] for part in cache)
    found = [attend_in_order(query, (keys, values), how, tree)]
    if window < 0 and not cap:
        found.append(attended(query, cache, at, how, tree))
    for number, path in enumerate(paths):
        seen = torch.cat([at[:num_before], at[num_before:][path]])
        expected = expected_of(query[number : number + 1], cache, seen, how)[0]
        for got in found:
            torch.testing.assert_close(got[number], expected, atol=TOLERANCE, rtol=0)


def test_a_pool_of_bfloat16_is_computed_in_float32() -> None:
    keys, values = (part.to(torch.bfloat16) for part in pool("grouped"))
    query, at = rows_of("grouped", 1).float(), lying("both", 3 * MIN_PIECE)
    got = attended(query, (keys, values), at, Weighing(SCALE))
    expected = expected_of(query, (keys, values), at, Weighing(SCALE))
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 2 * MIN_RUN)), max_size=6))
def test_runs_are_all_slots_and_long_ones_are_not_copied(parts: list[tuple[int, int]]) -> None:
    slots = torch.cat([torch.arange(0), *(torch.arange(start, start + length) for start, length in parts)])
    found = in_runs(slots)
    spelled = [list(range(run.start, run.stop)) if isinstance(run, slice) else run.tolist() for run in found]
    assert sorted(chain.from_iterable(spelled)) == sorted(slots.tolist())
    assert all(
        len(run) >= MIN_RUN for run, slots in zip(spelled, found, strict=True) if isinstance(slots, slice)
    )
    assert sum(isinstance(run, torch.Tensor) for run in found) <= 1


def test_a_run_is_read_where_it_lies() -> None:
    keys, values = pool("grouped")
    read_keys, read_values = Reader(torch.float64).read(keys, values, as_run(lying("run", 90)))
    assert read_keys.data_ptr() == keys[40].data_ptr()
    assert read_values.data_ptr() == values[40].data_ptr()
