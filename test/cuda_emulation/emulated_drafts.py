"""torch in place of the kernels around drafts: trees of drafts, and which of them are right.

SGLang's workers, their graphs and the Triton kernels between stay its own. The references of trees are those
of the CPU server; here masks also show the tokens before a tree, as kernels of a GPU read them.
"""

from __future__ import annotations

from typing import Any

import torch
from drafts_on_cpu import load_ngram_corpus
from sglang_layered_kernels.cpu import speculative as trees

import moved_kernels
from emulated_kernels import register
from emulated_sparse_drafts import emulate_sparse_drafts
from memory_watch import as_kernel

WHOLE_MASK, ONLY_TREE = 0, 1  # SGLang's TreeMaskMode


def emulate_drafts(algorithm: str) -> None:
    """Put them where SGLang calls the kernels."""
    if moved_kernels.IS_0_5_23:
        moved_kernels.put(sgl_build_tree_kernel_efficient=build_trees, verify_tree_greedy=follow_targets)
    else:
        kernels = {"build_tree_kernel_efficient": build_trees, "verify_tree_greedy": follow_targets}
        register("sgl_kernel", kernels)
    # Of tensors on a CPU it would ask for an operator of other builds.
    moved_kernels.put(reconstruct_indices_from_tree_mask=links_of_masks)
    emulate_sparse_drafts()
    if algorithm == "NGRAM":
        load_ngram_corpus()


@as_kernel("tree_mask", "positions", "index", "next_token", "next_sibling")
def build_trees(
    parent_list: Any,
    selected: Any,
    seq_lens: Any,
    tree_mask: Any,
    positions: Any,
    index: Any,
    next_token: Any,
    next_sibling: Any,
    topk: int,
    depth: int,
    num_drafts: int,
    mode: int,
) -> None:
    """Of a whole mask, rows of [tokens before, drafts], the first part is SGLang's to fill."""
    sizes = len(seq_lens), num_drafts, num_drafts
    seen, links = torch.empty(sizes, dtype=torch.bool), (index, next_token, next_sibling)
    trees.build_tree_kernel_efficient_cpu(
        parent_list, selected, seq_lens, seen.view(-1), positions, *links, topk, depth, num_drafts, ONLY_TREE
    )
    if mode == ONLY_TREE:
        tree_mask[: seen.numel()] = seen.flatten()
        return
    assert mode == WHOLE_MASK, f"no reference for masks of mode {mode}"
    start = 0
    for tree, before in zip(seen, seq_lens.tolist(), strict=True):
        end = start + num_drafts * (before + num_drafts)
        tree_mask[start:end].view(num_drafts, -1)[:, before:] = tree
        start = end


@as_kernel("predicts", "accept_index", "accept_token_num")
def follow_targets(
    predicts: Any,
    accept_index: Any,
    accept_token_num: Any,
    candidates: Any,
    retrive_index: Any,
    retrive_next_token: Any,
    retrive_next_sibling: Any,
    target_predict: Any,
) -> None:
    links = (retrive_index, retrive_next_token, retrive_next_sibling)
    trees.verify_tree_greedy_cpu(predicts, accept_index, accept_token_num, candidates, *links, target_predict)


@as_kernel("positions", "index", "next_token", "next_sibling")
def links_of_masks(
    tree_mask: Any,
    seq_lens: Any,
    positions: Any,
    index: Any,
    next_token: Any,
    next_sibling: Any,
    num_requests: int,
    num_drafts: int,
) -> None:
    trees.reconstruct_indices_from_tree_mask(
        tree_mask, seq_lens, positions, index, next_token, next_sibling, num_requests, num_drafts
    )
