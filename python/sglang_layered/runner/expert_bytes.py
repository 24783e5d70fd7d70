"""How many bytes one routed expert takes in the form that its kernels read.

SGLang has no call for it, so they are counted on what a FusedMoE layer and its quantization method hold after
loading, and refused where that is not clear. Upstream: srt/layers/moe/fused_moe_triton/layer.py, and the
methods in srt/layers/quantization, which all name their tensors `w13...` (gate and up) and `w2...` (down).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch

from sglang_layered.errors import UnsupportedError

MIN_WEIGHT_BITS = 2  # no method of SGLang stores a weight in fewer
MAX_DEPTH = 4  # of the objects in which a method wraps a tensor


def expert_bytes(experts: Any) -> int:
    """Bytes of one expert of a FusedMoE layer on this rank: weights, scales, zero points, biases; no indices.

    Raises:
        UnsupportedError: its tensors do not tell them.
    """
    down = experts.hidden_size * experts.intermediate_size_per_partition
    gate_up = down * (2 if experts.moe_runner_config.is_gated else 1)
    num_stored = experts.num_local_experts
    num_bytes = 0
    for matrix, num_weights in (("w13", gate_up), ("w2", down)):
        tensors = list(_tensors_read(experts, matrix))
        reason = _doubt(tensors, num_stored * num_weights)
        if reason is not None:
            raise UnsupportedError(
                f"--enable-expert-traffic-metrics: the bytes of layer {experts.layer_id}'s experts cannot be"
                f" told ({type(experts.quant_method).__name__}, {matrix}: {reason}); leave the flag out or"
                " choose another --moe-runner-backend"
            )
        num_bytes += sum(map(_num_bytes, tensors))
    return num_bytes // num_stored


def _tensors_read(experts: Any, matrix: str) -> Iterator[torch.Tensor]:
    """Each tensor of `matrix` once, of all experts."""
    moved = [
        tensor
        for name, value in getattr(experts.quant_method, "__dict__", {}).items()
        if name.startswith(matrix)
        for tensor in _tensors_in(value)
    ]
    on_layer = [
        tensor
        for name, tensor in (vars(experts) | experts._parameters | experts._buffers).items()
        if name.startswith(matrix)
        and isinstance(tensor, torch.Tensor)
        and tensor.shape[:1] == (experts.num_local_experts,)
        and not _is_index(tensor)
    ]
    if moved:
        # The method keeps its own copy of weights and scales (MXFP4 for triton_kernels). What the layer has
        # of them is left over from loading; only its biases are still read.
        on_layer = [tensor for tensor in on_layer if tensor.dim() <= 2]
    seen = {(tensor.data_ptr(), _num_bytes(tensor)): tensor for tensor in (*moved, *on_layer)}
    yield from (tensor for tensor in seen.values() if tensor.numel())


def _tensors_in(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth < MAX_DEPTH:
        parts = value if isinstance(value, (list, tuple)) else getattr(value, "__dict__", {}).values()
        for part in parts:
            yield from _tensors_in(part, depth + 1)


def _is_index(tensor: torch.Tensor) -> bool:
    """Integers in a row for each expert, such as GPTQ's `g_idx`: an order of the weights, none of them."""
    return tensor.dim() == 2 and not tensor.is_floating_point()


def _doubt(tensors: list[torch.Tensor], num_weights: int) -> str | None:
    """Why these tensors cannot be one matrix of `num_weights` weights with its scales and biases, or None."""
    largest, *others = sorted(map(_num_bytes, tensors), reverse=True) or [0]
    if 8 * largest < MIN_WEIGHT_BITS * num_weights:
        return f"its largest tensor has {8 * largest / num_weights:.2f} bits for each weight"
    if any(2 * other > largest for other in others):
        return "more than one tensor could hold the weights"
    scales = [tensor for tensor in tensors if tensor.dim() > 2 and _num_bytes(tensor) < largest]
    if any(_are_alike(one, other) for one, other in combinations(scales, 2)):
        return "there are several sets of scales, of which one is read"
    return None


def _are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Two sets of the same scales, such as a padded copy. Packed zero points are fewer."""
    small, large = sorted((one.numel(), other.numel()))
    return one.dtype == other.dtype and 2 * small > large


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
