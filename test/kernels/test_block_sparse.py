"""The CPU reference of attention to chosen blocks against its definition, row by row and block by block."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sglang_layered_kernels.cpu import block_sparse as ours

BLOCK, MOST, FIRST, LAST = 4, 3, 1, 1
HEADS, GROUP, SIZE, INDEX_SIZE, NUM_SLOTS = 2, 2, 6, 3, 64
LENGTHS, PREFIXES = [30, 3, 13], [17, 0, 12]  # of three requests; their rows are what is behind the prefix


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(scores: list[float], values: torch.Tensor) -> torch.Tensor:
    most = max(scores)
    weights = [math.exp(score - most) for score in scores]
    return sum(w / sum(weights) * value for w, value in zip(weights, values, strict=True))


def block_score(scores: list[float], score_type: str) -> float:
    return max(scores) if score_type == "max" else math.log(sum(map(math.exp, scores)))


def defined(
    q: torch.Tensor, idx_q: torch.Tensor, caches: list[torch.Tensor], slots: list[int], score_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Oracle: the outputs of one row that sees the tokens in these slots, the last of them its own."""
    k, v, idx_k, idx_v = (cache[slots] for cache in caches)
    outputs, index_outputs = [], []
    for head in range(HEADS):
        scores = [float(idx_q[head] @ key[0]) / INDEX_SIZE**0.5 for key in idx_k]
        index_outputs.append(softmax(scores, idx_v[:, 0]))
        num_blocks = -(-len(slots) // BLOCK)
        always = {*range(FIRST), *range(num_blocks - LAST, num_blocks)}
        others = sorted(
            (index for index in range(num_blocks) if index not in always),
            key=lambda index: -block_score(scores[index * BLOCK : (index + 1) * BLOCK], score_type),
        )
        chosen = [*always, *others][:MOST]
        tokens = [token for token in range(len(slots)) if token // BLOCK in chosen]
        for query in q[head * GROUP : (head + 1) * GROUP]:
            outputs.append(softmax([float(query @ k[t, head]) / SIZE**0.5 for t in tokens], v[tokens, head]))
    return torch.stack(index_outputs), torch.stack(outputs)


@pytest.fixture
def case() -> dict[str, Any]:
    num_rows = sum(LENGTHS) - sum(PREFIXES)
    order = torch.randperm(NUM_SLOTS, generator=torch.Generator().manual_seed(9))
    table = torch.zeros(5, max(LENGTHS), dtype=torch.int32)
    requests = torch.tensor([3, 0, 4])
    for request, part in zip(
        requests, order.split_with_sizes([*LENGTHS, NUM_SLOTS - sum(LENGTHS)]), strict=False
    ):
        table[request, : len(part)] = part
    return {
        "q": randn(num_rows, HEADS * GROUP, SIZE, seed=1),
        "idx_q": randn(num_rows, HEADS, INDEX_SIZE, seed=2),
        "caches": [
            randn(NUM_SLOTS, HEADS, SIZE, seed=3),
            randn(NUM_SLOTS, HEADS, SIZE, seed=4),
            randn(NUM_SLOTS, 1, INDEX_SIZE, seed=5),
            randn(NUM_SLOTS, 1, INDEX_SIZE, seed=6),
        ],
        "table": table,
        "requests": requests,
    }


@pytest.mark.parametrize("score_type", ["max", "lse"])
def test_prompts_behind_prefixes(case: dict[str, Any], score_type: str) -> None:
    k, v, idx_k, idx_v = case["caches"]
    rows = [length - prefix for length, prefix in zip(LENGTHS, PREFIXES, strict=True)]
    bounds = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()])
    places = (case["table"], case["requests"], bounds, torch.tensor(LENGTHS), torch.tensor(PREFIXES))
    sizes = (max(rows), max(LENGTHS), 1, BLOCK, MOST, FIRST, LAST)
    index_output, output = ours.minimax_sparse_prefill(
        case["q"], k, v, None, case["idx_q"], idx_k, idx_v, None, *places, *sizes, score_type=score_type
    )
    row = 0
    for request, length, prefix in zip(case["requests"], LENGTHS, PREFIXES, strict=True):
        for seen in range(prefix + 1, length + 1):
            slots = case["table"][request, :seen].tolist()
            parts = defined(case["q"][row], case["idx_q"][row], case["caches"], slots, score_type)
            torch.testing.assert_close(index_output[row], parts[0])
            torch.testing.assert_close(output[row], parts[1])
            row += 1


def test_decode_rows_without_values_of_the_index(case: dict[str, Any]) -> None:
    k, v, idx_k, _ = case["caches"]
    lengths = torch.tensor(LENGTHS)
    q, idx_q = case["q"][:3], case["idx_q"][:3]
    sizes = (max(LENGTHS), 1, BLOCK, MOST, FIRST, LAST)
    index_output, output = ours.minimax_sparse_decode(
        q, None, k, v, idx_q, None, idx_k, None, case["table"], case["requests"], lengths, *sizes
    )
    assert index_output is None
    for row, (request, length) in enumerate(zip(case["requests"], LENGTHS, strict=True)):
        slots = case["table"][request, :length].tolist()
        torch.testing.assert_close(output[row], defined(q[row], idx_q[row], case["caches"], slots, "max")[1])


def test_other_numbers_of_index_heads_are_not_computed(case: dict[str, Any]) -> None:
    k, v, idx_k, _ = case["caches"]
    one = torch.tensor([1])
    with pytest.raises(NotImplementedError, match="another number of index heads"):
        ours.minimax_sparse_decode(
            *(case["q"][:1], None, k, v, case["idx_q"][:1, :1], None, idx_k, None),
            *(case["table"], one, one, 1, 1, BLOCK, MOST, FIRST, LAST),
        )
