"""CPU references of what speculative decoding needs around its forwards: trees of drafts, and their KV slots.

A tree has `nodes` drafts a request, node 0 its root: the last token that is known. Links are by number of the
node within its request, -1: none; `retrieve_index` counts through all requests. Masks are those that SGLang
makes for a CPU: [requests, nodes, nodes] in one dimension, true where a node (row) is below another or is it.

Functions write into their arguments, as the kernels do whose names they have; argument names are SGLang's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sglang_layered.errors import CpuKernelError

ONLY_TREE = 1  # SGLang's TreeMaskMode.QLEN_ONLY


def reconstruct_indices_from_tree_mask(
    tree_mask: torch.Tensor,
    verified_seq_len: torch.Tensor,
    positions: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """Positions and links of trees that are given by their masks, parents before their children.

    Args:
        tree_mask: bool, as above.
        verified_seq_len: [requests], tokens before the root.
        positions: [requests * nodes], written: tokens before a node on its path.
        retrive_index: [requests, nodes], written.
        retrive_next_token: as above, written: the first child.
        retrive_next_sibling: as above, written: the next child of the same parent.
        batch_size: requests.
        draft_token_num: nodes.

    """
    trees = tree_mask.view(batch_size, draft_token_num, draft_token_num)
    ancestors = trees.tril(-1)
    depths = ancestors.sum(-1)
    positions.copy_((verified_seq_len[:, None] + depths).flatten())
    number = torch.arange(draft_token_num)
    parents = (ancestors * (number + 1)).amax(-1) - 1
    _link(parents, retrive_index, retrive_next_token, retrive_next_sibling)


def build_tree_kernel_efficient_cpu(
    parent_list: torch.Tensor,
    selected_index: torch.Tensor,
    verified_seq_len: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Masks, positions and links of trees that a draft model grew.

    A candidate's number says its parent: candidates `topk * p` and the next are children of candidate
    `parent_list[p]`, and of the root for p = 0.

    Args:
        parent_list: [requests, ...], candidates that have children, in the order of their children.
        selected_index: [requests, nodes - 1], candidates that are nodes, sorted.
        verified_seq_len: [requests], tokens before the root.
        tree_mask: bool, as above, written.
        positions: [requests * nodes], written.
        retrive_index: [requests, nodes], written.
        retrive_next_token: as above, written.
        retrive_next_sibling: as above, written.
        topk: children of a candidate.
        depth: levels below the root.
        draft_token_num: nodes.
        tree_mask_mode: SGLang's TreeMaskMode; QLEN_ONLY.

    Raises:
        CpuKernelError: other masks are asked for.
    """
    if int(tree_mask_mode) != ONLY_TREE:
        raise CpuKernelError(
            f"build_tree_kernel_efficient_cpu: masks of mode {tree_mask_mode} are not for a CPU"
        )
    trees = torch.eye(draft_token_num, dtype=torch.bool).repeat(len(selected_index), 1, 1)
    parents = torch.full((len(selected_index), draft_token_num), -1)
    for request, candidates in enumerate(selected_index.tolist()):
        node_of = {candidate: node for node, candidate in enumerate(candidates, 1)}
        for node, candidate in enumerate(candidates, 1):
            place = candidate // topk
            parent = node_of.get(int(parent_list[request, place]), -1) if place else 0
            if parent >= 0:  # where scores tie, a node may be there without its parent: nothing leads to it
                parents[request, node] = parent
                trees[request, node] |= trees[request, parent]
    tree_mask[: trees.numel()] = trees.flatten()
    positions.copy_((verified_seq_len[:, None] + trees.sum(-1) - 1).flatten())
    _link(parents, retrive_index, retrive_next_token, retrive_next_sibling)


def verify_tree_greedy_cpu(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:
    """From the root down to the child that holds the target's token, as long as there is one.

    Args:
        predicts: [requests * nodes], written at each node on the way: the target's token after it.
        accept_index: [requests, most levels], written: nodes on the way, the root first.
        accept_token_num: [requests], written: nodes on the way without the root.
        candidates: [requests, nodes], tokens.
        retrive_index: [requests, nodes].
        retrive_next_token: [requests, nodes].
        retrive_next_sibling: [requests, nodes].
        target_predict: [requests, nodes], the target's token after each node.

    """
    targets = target_predict.tolist()
    for request, (tokens, children, siblings) in enumerate(
        zip(candidates.tolist(), retrive_next_token.tolist(), retrive_next_sibling.tolist(), strict=True)
    ):
        path = [0]
        while len(path) < accept_index.shape[1]:
            wanted = targets[request][path[-1]]
            found = [node for node in among(children[path[-1]], siblings) if tokens[node] == wanted]
            if not found:
                break
            path.append(found[0])
        nodes = retrive_index[request, path]
        accept_index[request, : len(path)] = nodes.to(accept_index.dtype)
        accept_token_num[request] = len(path) - 1
        predicts[nodes] = target_predict[request, path].to(predicts.dtype)


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """The KV slots of positions [start, end) of each request, one request after another.

    Args:
        req_pool_indices: [requests], rows of the table.
        req_to_token: [rows, pool_len], the table: KV slot of each position.
        start_offset: [requests].
        end_offset: [requests].
        out_cache_loc: [at least the sum of end - start], written from its beginning.
        pool_len: columns of the table.

    """
    ranges = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    if max([*end_offset.tolist(), 0]) > pool_len:
        raise CpuKernelError(f"positions up to {int(end_offset.max())} in a table of {pool_len} columns")
    slots = torch.cat([req_to_token[row, start:end] for row, start, end in ranges])
    out_cache_loc[: len(slots)] = slots.to(out_cache_loc.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    topk: int,
    speculative_num_steps: int,
) -> None:
    """The KV slots of `topk * speculative_num_steps` positions from `seq_lens` on; else as above."""
    ends = seq_lens + topk * speculative_num_steps
    assign_extend_cache_locs_cpu(req_pool_indices, req_to_token, seq_lens, ends, out_cache_loc, pool_len)


def fill_accept_out_cache_loc_cpu(
    accept_index: torch.Tensor, out_cache_loc: torch.Tensor, accept_out_cache_loc: torch.Tensor
) -> None:
    """KV slots of accepted nodes, close together, at the beginning of `accept_out_cache_loc`.

    Args:
        accept_index: [requests, most levels], places in `out_cache_loc`, -1: none.
        out_cache_loc: [requests * nodes], slots.
        accept_out_cache_loc: [as many as `accept_index`], written.

    """
    accepted = accept_index[accept_index >= 0].long()
    accept_out_cache_loc[: len(accepted)] = out_cache_loc[accepted]


def fill_bonus_tokens_cpu(
    accept_tokens: torch.Tensor, accept_lens: torch.Tensor, bonus_tokens: torch.Tensor, accept_stride: int
) -> None:
    """Each request's last token: number `accept_lens - 1` [requests] of its `accept_stride` accepted ones."""
    rows = accept_tokens.reshape(-1, accept_stride)
    last = (accept_lens.long() - 1)[:, None]
    bonus_tokens.copy_(rows.gather(1, last)[:, 0])


def rotate_input_ids_cpu(
    input_ids: torch.Tensor,
    extend_start_loc: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    topk_index: torch.Tensor,
    select_index: torch.Tensor | None,
) -> None:
    """Shift each request's tokens by one to the front, in place, and put a new one behind the last.

    `input_ids` [tokens] of all requests, of which each has `extend_seq_lens` [requests] from its
    `extend_start_loc` on; `topk_index` [requests] or [requests, 1] the new ones. With `select_index`
    [requests] a new token goes there instead: behind a request's last right draft.
    """
    rows = zip(
        extend_start_loc.tolist(), extend_seq_lens.tolist(), topk_index.flatten().tolist(), strict=True
    )
    for index, (start, length, token) in enumerate(rows):
        if length == 0:
            continue
        mine = input_ids[start : start + length]
        mine[:-1] = mine[1:].clone()
        input_ids[start + length - 1 if select_index is None else int(select_index[index])] = token


def among(node: int, siblings: list[int]) -> Iterator[int]:
    """A node (-1: none) and those that follow it among the children of one parent."""
    while node >= 0:
        yield node
        node = siblings[node]


def _link(
    parents: torch.Tensor, index: torch.Tensor, next_token: torch.Tensor, next_sibling: torch.Tensor
) -> None:
    """Write the links of trees from the parents [requests, nodes] of their nodes, -1 of the root."""
    num_requests, num_nodes = parents.shape
    index.copy_(torch.arange(num_requests * num_nodes).view(num_requests, num_nodes))
    next_token.fill_(-1)
    next_sibling.fill_(-1)
    for request, of_nodes in enumerate(parents.tolist()):
        for node in reversed(range(1, num_nodes)):
            parent = of_nodes[node]
            if parent >= 0:
                next_sibling[request, node] = next_token[request, parent]
                next_token[request, parent] = node
