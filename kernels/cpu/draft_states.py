"""CPU references of what recurrent layers do with drafts: states behind each draft, and which of them stay.

While drafts are verified a request's own states stay as they are. A node of its tree (`speculative.py`) goes
on from its parent's states, the root from the request's; those behind each node are kept apart until it is
known which node was the last one accepted. Without links a tree is a chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang_layered_kernels.cpu.speculative import among


def parents_of(
    num_requests: int,
    num_nodes: int,
    next_token: torch.Tensor | None = None,
    next_sibling: torch.Tensor | None = None,
) -> torch.Tensor:
    """The parent of every node [requests, nodes], -1: none; from links as in `speculative.py`."""
    parents = torch.arange(-1, num_nodes - 1).repeat(num_requests, 1)
    if next_token is None or next_sibling is None:
        return parents
    parents.fill_(-1)
    links = zip(parents, next_token.tolist(), next_sibling.tolist(), strict=True)
    for of_request, children, siblings in links:
        for node, child in enumerate(children):
            of_request[list(among(child, siblings))] = node
    return parents


def convolve_drafts(
    x: torch.Tensor,
    conv_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    slots: torch.Tensor,
    *,
    intermediate_conv_window: torch.Tensor,
    intermediate_state_indices: torch.Tensor,
    retrieve_next_token: torch.Tensor | None = None,
    retrieve_next_sibling: torch.Tensor | None = None,
    retrieve_parent_token: torch.Tensor | None = None,
) -> torch.Tensor:
    """The causal convolution of every draft, without an activation.

    Args:
        x: [requests, channels, nodes].
        conv_states: [slots, channels, width - 1], the last inputs of every request; read only.
        weight: [channels, width], oldest input first.
        bias: [channels].
        slots: [requests].
        intermediate_conv_window: [places, nodes, channels, width - 1], written: the last inputs at each node.
        intermediate_state_indices: [requests or more], places.
        retrieve_next_token: [requests, nodes], links of trees; None: chains.
        retrieve_next_sibling: as above.
        retrieve_parent_token: [requests, nodes], written where there are links; the recurrence reads it.

    Returns:
        As x.
    """
    parents = parents_of(x.shape[0], x.shape[2], retrieve_next_token, retrieve_next_sibling)
    if retrieve_parent_token is not None:
        retrieve_parent_token.copy_(parents)
    output = torch.empty_like(x)

    def advance(request: int, node: int, before: torch.Tensor) -> torch.Tensor:
        seen = torch.cat([before.to(x.dtype), x[request, :, node, None]], dim=1)
        summed = (seen * weight).sum(-1)
        output[request, :, node] = summed if bias is None else summed + bias
        return seen[:, 1:]

    along_drafts(conv_states, slots, intermediate_conv_window, intermediate_state_indices, parents, advance)
    return output


def along_drafts(
    states: torch.Tensor,
    slots: torch.Tensor,
    kept: torch.Tensor,
    places: torch.Tensor,
    parents: torch.Tensor | None,
    advance: Callable[[int, int, torch.Tensor], torch.Tensor],
) -> None:
    """Advance every request's state from node to node, and keep the states behind each.

    Args:
        states: [slots, ...], read only.
        slots: [requests].
        kept: [places, nodes, ...], written.
        places: [requests or more].
        parents: [requests, nodes]; None: chains of as many nodes as `kept` has.
        advance: gives the state behind a request's node, of the one before it.
    """
    parents = parents_of(len(slots), kept.shape[1]) if parents is None else parents
    for request, (slot, of_nodes) in enumerate(zip(slots.tolist(), parents.tolist(), strict=True)):
        after: list[torch.Tensor] = []
        for node, parent in enumerate(of_nodes):
            after.append(advance(request, node, states[slot] if parent < 0 else after[parent]))
        kept[places[request], : len(after)] = torch.stack(after).to(kept.dtype)


def keep_accepted(
    caches: Any,
    slots: torch.Tensor,
    nodes: torch.Tensor,
    tracked_slots: torch.Tensor | None,
    tracked_nodes: torch.Tensor | None,
    src_indices_raw: torch.Tensor | None = None,
) -> None:
    """Make the states behind one node of each request its own, in all layers.

    Upstream: `scatter_mamba_states_after_mtp_verify`.

    Args:
        caches: SGLang's `MambaPool.SpeculativeState`; tensors are [layers, slots, ...], and
            [layers, places, nodes, ...] those behind drafts.
        slots: [requests].
        nodes: [requests], the last accepted one; -1: leave the slot alone.
        tracked_slots: [requests], further slots, from which the prefix cache takes states.
        tracked_nodes: [requests], as `nodes`, for these.
        src_indices_raw: [requests], places; None: a request's place is its number.
    """
    places = range(len(slots)) if src_indices_raw is None else src_indices_raw.tolist()
    parts = [(caches.temporal, caches.intermediate_ssm)]
    parts += zip(caches.conv, caches.intermediate_conv_window, strict=True)
    for where, which in ((slots, nodes), (tracked_slots, tracked_nodes)):
        if where is None or which is None:
            continue
        for place, slot, node in zip(places, where.tolist(), which.tolist(), strict=True):
            if node >= 0:
                for states, kept in parts:
                    states[:, slot] = kept[:, place, node]
