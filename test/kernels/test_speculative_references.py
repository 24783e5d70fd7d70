"""The references of trees of drafts against trees of Python objects."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang_layered_kernels.cpu import speculative

from sglang_layered.errors import CpuKernelError


@dataclass
class Node:
    """A draft; `number` within its request, in the order in which drafts are listed."""

    number: int
    token: int
    above: Node | None = None
    below: list[Node] = field(default_factory=list)

    @property
    def path(self) -> list[Node]:
        """From the root to here."""
        return [*(self.above.path if self.above else ()), self]


Tree = list[Node]


def grown(parents: list[int], tokens: list[int]) -> Tree:
    nodes = [Node(0, tokens[0])]
    for number, (parent, token) in enumerate(zip(parents, tokens[1:], strict=True), 1):
        nodes.append(Node(number, token, nodes[parent]))
        nodes[parent].below.append(nodes[-1])
    return nodes


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Tree], list[int]]:
    """Trees of one size, and each request's tokens before its root."""
    num_nodes, num_requests = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    token = st.integers(0, 2)
    trees = [
        grown(
            [draw(st.integers(0, number)) for number in range(num_nodes - 1)],
            draw(st.lists(token, min_size=num_nodes, max_size=num_nodes)),
        )
        for _ in range(num_requests)
    ]
    return trees, draw(st.lists(st.integers(0, 9), min_size=num_requests, max_size=num_requests))


def mask_of(tree: Tree) -> torch.Tensor:
    return torch.tensor([[other in node.path for other in tree] for node in tree])


class Links:
    """What the functions write, filled with what must not stay."""

    def __init__(self, num_requests: int, num_nodes: int) -> None:
        self.positions = torch.full((num_requests * num_nodes,), -7)
        self.index, self.child, self.sibling = torch.full((3, num_requests, num_nodes), -7)

    def check(self, trees: list[Tree], before: list[int]) -> None:
        flat = self.positions.view(self.index.shape)
        for request, tree in enumerate(trees):
            for node in tree:
                at = request, node.number
                below = [child.number for child in node.below]
                peers = [peer.number for peer in node.above.below] if node.above else [0]
                later = [peer for peer in peers if peer > node.number]
                assert flat[at] == before[request] + len(node.path) - 1
                assert self.index[at] == request * len(tree) + node.number
                assert self.child[at] == (below or [-1])[0]
                assert self.sibling[at] == (later or [-1])[0]


@given(batches())
def test_links_come_from_masks(batch: tuple[list[Tree], list[int]]) -> None:
    trees, before = batch
    links = Links(len(trees), len(trees[0]))
    speculative.reconstruct_indices_from_tree_mask(
        torch.cat([mask_of(tree).flatten() for tree in trees]),
        torch.tensor(before),
        links.positions,
        links.index,
        links.child,
        links.sibling,
        len(trees),
        len(trees[0]),
    )
    links.check(trees, before)


@given(st.data())
def test_a_drafts_tree_grows_from_its_candidates(data: st.DataObject) -> None:
    """A draft model grows `topk` children of the root, then of `topk` candidates a level; some are nodes."""
    topk, depth = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    paths: list[tuple[int, ...]] = [(candidate,) for candidate in range(topk)]  # candidates on the way
    with_children: list[int] = [-1]  # which candidate the children of a place have above
    level = list(range(topk))
    for _ in range(1, depth):
        chosen = data.draw(st.lists(st.sampled_from(level), min_size=topk, max_size=topk, unique=True))
        level = []
        for parent in chosen:
            with_children.append(parent)
            for _ in range(topk):
                level.append(len(paths))
                paths.append((*paths[parent], len(paths)))
    wanted: set[int] = set()
    for end in data.draw(st.lists(st.sampled_from(range(len(paths))), min_size=1)):
        wanted |= set(paths[end])
    nodes = sorted(wanted)
    parents = [0 if len(paths[node]) == 1 else nodes.index(paths[node][-2]) + 1 for node in nodes]
    tree = grown(parents, [0] * (len(nodes) + 1))
    links, mask = Links(1, len(tree)), torch.zeros(len(tree) ** 2, dtype=torch.bool)
    speculative.build_tree_kernel_efficient_cpu(
        torch.tensor([with_children]),
        torch.tensor([nodes]),
        torch.tensor([5]),
        mask,
        links.positions,
        links.index,
        links.child,
        links.sibling,
        topk,
        depth,
        len(tree),
        1,
    )
    links.check([tree], [5])
    assert torch.equal(mask.view(len(tree), -1), mask_of(tree))


def test_masks_over_whole_contexts_are_refused() -> None:
    nothing = torch.zeros(0)
    with pytest.raises(CpuKernelError, match="mode 0"):
        speculative.build_tree_kernel_efficient_cpu(*[nothing] * 8, 1, 1, 1, 0)


@given(batches(), st.data())
def test_greedy_verification_walks_down(batch: tuple[list[Tree], list[int]], data: st.DataObject) -> None:
    trees, before = batch
    num_nodes = len(trees[0])
    most = data.draw(st.integers(1, num_nodes))
    token = st.lists(st.integers(0, 2), min_size=num_nodes, max_size=num_nodes)
    targets = [data.draw(token) for _ in trees]
    links = Links(len(trees), num_nodes)
    mask = torch.cat([mask_of(tree).flatten() for tree in trees])
    speculative.reconstruct_indices_from_tree_mask(
        mask,
        torch.tensor(before),
        links.positions,
        links.index,
        links.child,
        links.sibling,
        len(trees),
        num_nodes,
    )
    predicts = torch.full((len(trees) * num_nodes,), -1, dtype=torch.int32)
    accepted = torch.full((len(trees), most), -1, dtype=torch.int32)
    counts = torch.empty(len(trees), dtype=torch.int32)
    speculative.verify_tree_greedy_cpu(
        predicts=predicts,
        accept_index=accepted,
        accept_token_num=counts,
        candidates=torch.tensor([[node.token for node in tree] for tree in trees]),
        retrive_index=links.index,
        retrive_next_token=links.child,
        retrive_next_sibling=links.sibling,
        target_predict=torch.tensor(targets),
    )
    for request, (tree, target) in enumerate(zip(trees, targets, strict=True)):
        way = [tree[0]]
        while len(way) < most and (
            fitting := [child for child in way[-1].below if child.token == target[way[-1].number]]
        ):
            way.append(fitting[0])
        numbers = [node.number for node in way]
        first = request * num_nodes
        assert counts[request] == len(way) - 1
        assert accepted[request].tolist() == [first + n for n in numbers] + [-1] * (most - len(way))
        own = predicts[first : first + num_nodes].tolist()
        assert own == [target[n] if n in numbers else -1 for n in range(num_nodes)]


def test_slots_of_drafts_and_of_accepted_ones() -> None:
    table = torch.arange(300, 360).view(3, 20).to(torch.int32)
    rows, starts, ends = torch.tensor([2, 0]), torch.tensor([4, 7]), torch.tensor([7, 9])
    out = torch.zeros(8, dtype=torch.int64)
    speculative.assign_extend_cache_locs_cpu(rows, table, starts, ends, out, 20)
    assert out.tolist() == [344, 345, 346, 307, 308, 0, 0, 0]
    speculative.assign_draft_cache_locs_contiguous_cpu(rows, table, starts, out, 20, 2, 2)
    assert out.tolist() == [344, 345, 346, 347, 307, 308, 309, 310]
    with pytest.raises(CpuKernelError, match="20 columns"):
        speculative.assign_extend_cache_locs_cpu(rows, table, starts, ends + 12, out, 20)
    accepted = torch.tensor([[0, 3, -1], [4, -1, -1]], dtype=torch.int32)
    front = torch.zeros(6, dtype=torch.int64)
    speculative.fill_accept_out_cache_loc_cpu(accepted, out, front)
    assert front.tolist() == [344, 347, 307, 0, 0, 0]
    bonus = torch.zeros(2, dtype=torch.int32)
    tokens = torch.tensor([[11, 12, 13], [21, 22, 23]], dtype=torch.int32)
    speculative.fill_bonus_tokens_cpu(tokens, torch.tensor([2, 1], dtype=torch.int32), bonus, 3)
    assert bonus.tolist() == [12, 21]


@pytest.mark.parametrize(
    ("at", "expected"),
    [(None, [11, 12, 50, 21, 60, 30]), ([1, 3, 5], [11, 50, 12, 60, 21, 30])],
    ids=["behind the last", "behind a draft"],
)
def test_tokens_move_by_one(at: list[int] | None, expected: list[int]) -> None:
    """Of a request of three tokens, one of two, and one that is not touched."""
    tokens = torch.tensor([10, 11, 12, 20, 21, 30])
    starts, lengths, new = torch.tensor([0, 3, 5]), torch.tensor([3, 2, 0]), torch.tensor([[50], [60], [70]])
    speculative.rotate_input_ids_cpu(tokens, starts, lengths, new, None if at is None else torch.tensor(at))
    assert tokens.tolist() == expected
