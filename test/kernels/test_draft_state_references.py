"""The CPU references of states behind drafts: each path of a tree is as its tokens, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_layered_kernels.cpu import gated_delta, mamba2
from sglang_layered_kernels.cpu.draft_states import keep_accepted, parents_of

NUM_REQUESTS, NUM_NODES, NUM_SLOTS, WIDTH = 2, 4, 5, 4
KEY_HEADS, HEADS, SIZE, STATE_SIZE = 2, 4, 3, 5
SLOTS, PLACES = torch.tensor([3, 1]), torch.tensor([0, 1, 2])
# The first child and the next sibling of every node, -1: none: a chain, and a root with two branches.
CHAINS = (None, None)
TREES = (
    torch.tensor([[1, 2, 3, -1], [1, 3, -1, -1]]),
    torch.tensor([[-1, -1, -1, -1], [-1, 2, -1, -1]]),
)
PATHS = {"chains": [[[0, 1, 2, 3]]] * 2, "trees": [[[0, 1, 2, 3]], [[0, 1, 3], [0, 2]]]}
KINDS = {"chains": CHAINS, "trees": TREES}


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def parents(kind: str) -> torch.Tensor | None:
    return None if kind == "chains" else parents_of(NUM_REQUESTS, NUM_NODES, *KINDS[kind])


def along_paths(kind: str, states: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Requests and nodes of every path, and its own states, to be advanced by each node before the next."""
    for request, paths in enumerate(PATHS[kind]):
        for path in paths:
            own = states.clone()
            for node in path:
                yield request, node, own


def test_parents_are_read_off_the_links() -> None:
    assert parents_of(NUM_REQUESTS, NUM_NODES).tolist() == [[-1, 0, 1, 2]] * 2
    assert parents_of(NUM_REQUESTS, NUM_NODES, *TREES).tolist() == [[-1, 0, 1, 2], [-1, 0, 0, 1]]


def test_a_convolution_of_drafts_is_that_of_their_path(kind: str) -> None:
    x, states = randn(NUM_REQUESTS, 6, NUM_NODES, seed=1), randn(NUM_SLOTS, 6, WIDTH - 1, seed=2)
    weight, bias = randn(6, WIDTH, seed=3), randn(6, seed=4)
    kept, before = torch.zeros(3, NUM_NODES, 6, WIDTH - 1, dtype=torch.float64), states.clone()
    next_token, next_sibling = KINDS[kind]
    links = torch.zeros(NUM_REQUESTS, NUM_NODES, dtype=torch.long) if kind == "trees" else None
    output = gated_delta.causal_conv1d_update_cpu(
        x,
        states,
        weight,
        bias,
        conv_state_indices=SLOTS,
        intermediate_conv_window=kept,
        intermediate_state_indices=PLACES,
        retrieve_next_token=next_token,
        retrieve_next_sibling=next_sibling,
        retrieve_parent_token=links,
    )
    assert torch.equal(states, before)
    assert links is None or torch.equal(links, parents_of(NUM_REQUESTS, NUM_NODES, next_token, next_sibling))
    for request, node, own in along_paths(kind, before):
        [expected] = gated_delta.causal_conv1d_update_cpu(
            x[request, None, :, node], own, weight, bias, conv_state_indices=SLOTS[request, None]
        )
        assert torch.allclose(output[request, :, node], expected)
        assert torch.allclose(kept[request, node], own[SLOTS[request]])


def test_gated_delta_nets_go_on_from_the_state_behind_the_parent(kind: str) -> None:
    total = NUM_REQUESTS * NUM_NODES
    q, k = (randn(1, total, KEY_HEADS, STATE_SIZE, seed=seed) for seed in (1, 2))
    v, a, b = randn(1, total, HEADS, SIZE, seed=3), randn(total, HEADS, seed=4), randn(total, HEADS, seed=5)
    decay, bias = randn(HEADS, seed=6), randn(HEADS, seed=7)
    states = randn(NUM_SLOTS, HEADS, SIZE, STATE_SIZE, seed=8)
    kept, before = torch.zeros(3, NUM_NODES, *states.shape[1:], dtype=torch.float64), states.clone()

    def run(rows: slice, of: torch.Tensor, slots: torch.Tensor, **drafts: Any) -> torch.Tensor:
        return gated_delta.fused_sigmoid_gating_delta_rule_update_cpu(
            decay,
            bias,
            q[:, rows],
            k[:, rows],
            v[:, rows],
            a[rows],
            b[rows],
            initial_state_source=of,
            initial_state_indices=slots,
            cu_seqlens=torch.tensor([0, 1]),
            **drafts,
        )

    output = run(
        slice(None),
        states,
        SLOTS,
        disable_state_update=True,
        intermediate_states_buffer=kept,
        intermediate_state_indices=PLACES,
        cache_steps=NUM_NODES,
        retrieve_parent_token=parents(kind),
    )
    assert torch.equal(states, before) and output.shape == v.shape
    for request, node, own in along_paths(kind, before):
        row = request * NUM_NODES + node
        expected = run(slice(row, row + 1), own, SLOTS[request, None])
        assert torch.allclose(output[0, row], expected[0, 0], atol=1e-6)
        assert torch.allclose(kept[request, node], own[SLOTS[request]], atol=1e-6)


def test_mamba2_goes_on_from_the_state_behind_the_parent(kind: str) -> None:
    x = randn(NUM_REQUESTS, NUM_NODES, HEADS, SIZE, seed=1)
    step = randn(NUM_REQUESTS, NUM_NODES, HEADS, 1, seed=2).expand(x.shape)
    b, c = (randn(NUM_REQUESTS, NUM_NODES, 2, STATE_SIZE, seed=seed) for seed in (3, 4))
    decay = -randn(HEADS, seed=5).abs()[:, None, None].expand(HEADS, SIZE, STATE_SIZE)
    skip, bias = (randn(HEADS, 1, seed=seed).expand(HEADS, SIZE) for seed in (6, 7))
    states = randn(NUM_SLOTS, HEADS, SIZE, STATE_SIZE, seed=8)
    kept, before = torch.zeros(3, NUM_NODES, *states.shape[1:], dtype=torch.float64), states.clone()

    def run(own: Any, of: torch.Tensor, slots: torch.Tensor, **drafts: Any) -> torch.Tensor:
        out, rows = torch.empty_like(x[own]), (x[own], step[own], decay, b[own], c[own], skip)
        mamba2.selective_state_update(of, *rows, dt_bias=bias, state_batch_indices=slots, out=out, **drafts)
        return out

    output = run(
        slice(None),
        states,
        SLOTS,
        disable_state_update=True,
        intermediate_states_buffer=kept,
        intermediate_state_indices=PLACES,
        retrieve_parent_token=parents(kind),
    )
    assert torch.equal(states, before)
    for request, node, own in along_paths(kind, before):
        [expected] = run((slice(request, request + 1), node), own, SLOTS[request, None])
        assert torch.allclose(output[request, node], expected)
        assert torch.allclose(kept[request, node], own[SLOTS[request]])


def test_the_states_behind_the_last_accepted_draft_become_the_requests() -> None:
    def cache(*shape: int, seed: int) -> torch.Tensor:
        return randn(2, *shape, seed=seed)

    caches = SimpleNamespace(
        temporal=cache(NUM_SLOTS, 3, seed=1),
        intermediate_ssm=cache(3, NUM_NODES, 3, seed=2),
        conv=[cache(NUM_SLOTS, 6, seed=3)],
        intermediate_conv_window=[cache(3, NUM_NODES, 6, seed=4)],
    )
    states = (caches.temporal, caches.conv[0])
    expected = [part.clone() for part in states]
    kept = (caches.intermediate_ssm, caches.intermediate_conv_window[0])
    for part, behind in zip(expected, kept, strict=True):
        part[:, 3], part[:, 1], part[:, 4] = behind[:, 0, 2], behind[:, 1, 0], behind[:, 1, 3]
    keep_accepted(caches, SLOTS, torch.tensor([2, 0]), torch.tensor([0, 4]), torch.tensor([-1, 3]))
    for part, wanted in zip(states, expected, strict=True):
        assert torch.equal(part, wanted)
    keep_accepted(caches, SLOTS, torch.tensor([-1, -1]), None, None)
    assert torch.equal(caches.temporal, expected[0])
