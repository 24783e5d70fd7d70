"""The MoE layers of an SGLang model: where experts are chosen, how many, and how many bytes each takes.

SGLang has no call for an expert's bytes, so they are counted on what a FusedMoE layer and its quantization
method hold after loading, and refused where that is not clear. Upstream: srt/layers/moe/topk.py,
srt/layers/moe/fused_moe_triton/layer.py, srt/eplb/expert_distribution.py, and the methods in
srt/layers/quantization, which all name their tensors `w13...` (gate and up) and `w2...` (down).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from sglang.srt.eplb.expert_distribution import (
    get_global_expert_distribution_recorder,
    set_global_expert_distribution_recorder,
)
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.topk import TopK
from torch import nn

from sglang_layered.errors import UnsupportedError
from sglang_layered.metrics.traffic import ExpertShape
from sglang_layered.upstream.releases import forwarding

MIN_WEIGHT_BITS = 2  # no method of SGLang stores a weight in fewer
MAX_DEPTH = 4  # of the objects in which a method wraps a tensor
# Scales of activations, and what only describes the weights or their order.
NO_WEIGHTS = re.compile(r"input_|weight_shape|qweight_type|(weight_)?g_idx")
# A method leaves the first on the layer when it has made the second, which is what its kernel reads.
LEFT_OVER = {
    "weight_scale": "blockscale_swizzled",  # NVFP4
    "weight_global_scale": "weight_scale_2",  # NVFP4 of compressed-tensors
    "qzeros": "g_idx_sort_indices",  # GPTQ on Marlin: its kernel takes no zero points
}


@dataclass(frozen=True, eq=False)
class MoeLayer:
    """One MoE layer: its TopK module, and the routed experts [first, first + num_local) of this rank."""

    layer_id: int
    topk: nn.Module
    first: int
    num_local: int
    num_routed: int
    expert_bytes: int

    @property
    def top_k(self) -> int:
        """Routed experts that a row activates."""
        config = self.topk.topk_config
        return int(config.top_k) - forwarding.num_shared_slots(config)

    def local_ids(self, args: tuple[Any, ...], output: Any) -> torch.Tensor:
        """Experts of each row on this rank, int [rows, chosen]; those of other ranks and shared ones are -1.

        `args` and `output` are those of the TopK module's forward. The triton_kernels format has no ids, so
        they are chosen again from the router's logits, as it does.
        """
        ids = getattr(output, "topk_ids", None)
        if ids is None:
            if not hasattr(output, "routing_data"):
                raise UnsupportedError(
                    "--enable-expert-traffic-metrics: this --moe-runner-backend chooses the experts inside"
                    " its own kernel; leave the flag out or choose another"
                )
            ids = args[1].topk(self.top_k, dim=-1).indices
        if self.num_local == self.num_routed and not forwarding.num_shared_slots(self.topk.topk_config):
            return ids
        local = ids - self.first
        return torch.where((local >= 0) & (local < self.num_local), local, -1)


def find_moe_layers(model: nn.Module) -> tuple[MoeLayer, ...]:
    """All layers of `model` that choose experts, in order.

    Raises:
        UnsupportedError: some layer's experts cannot be counted.
    """
    layers = sorted(_layers(model), key=lambda layer: layer.layer_id)
    if len(layers) != sum(isinstance(module, TopK) for module in model.modules()):
        raise UnsupportedError(
            "--enable-expert-traffic-metrics: some layers of this model choose experts without SGLang's"
            " FusedMoE module beside them; leave the flag out"
        )
    return tuple(layers)


def expert_shape(layers: tuple[MoeLayer, ...]) -> ExpertShape:
    """Their sizes."""
    return ExpertShape(
        tuple(layer.layer_id for layer in layers),
        np.array([layer.expert_bytes for layer in layers], dtype=np.int64),
        np.array([layer.num_local for layer in layers], dtype=np.int64),
        np.array([layer.top_k for layer in layers], dtype=np.int64),
    )


def _layers(model: nn.Module) -> Iterator[MoeLayer]:
    for block in model.modules():
        children = list(block.children())
        # Where adapters may change experts SGLang wraps them; the bytes of adapters are not counted.
        inside = [getattr(child, "base_layer", child) for child in children]
        topk = next((child for child in children if isinstance(child, TopK)), None)
        experts = next((child for child in inside if isinstance(child, FusedMoE)), None)
        if topk is not None and experts is not None:
            num_shared = experts.num_fused_shared_experts
            num_local, num_routed = experts.num_local_experts - num_shared, experts.num_experts - num_shared
            first = experts.moe_ep_rank * num_local
            yield MoeLayer(experts.layer_id, topk, first, num_local, num_routed, expert_bytes(experts))


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
        if hasattr(getattr(experts, f"{matrix}_weight", None), "bnb_quant_state"):
            reason = "bitsandbytes widens all experts in every forward, not those that rows choose"
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
    on_layer = _tensors_on_layer(experts, matrix)
    if moved:
        # The method keeps its own copy of weights and scales (MXFP4 for triton_kernels). What the layer has
        # of them is left over from loading; only its biases are still read.
        on_layer = [tensor for tensor in on_layer if tensor.dim() <= 2]
    seen = {(tensor.data_ptr(), _num_bytes(tensor)): tensor for tensor in (*moved, *on_layer)}
    yield from (tensor for tensor in seen.values() if tensor.numel())


def _tensors_on_layer(experts: nn.Module, matrix: str) -> list[torch.Tensor]:
    def own(kind: str) -> dict[str, torch.Tensor]:
        return dict(getattr(experts, f"named_{kind}")(recurse=False))

    held = {
        name.removeprefix(f"{matrix}_"): value
        for name, value in {**vars(experts), **own("parameters"), **own("buffers")}.items()
        if name.startswith(f"{matrix}_") and isinstance(value, torch.Tensor)
    }
    if hasattr(experts, "workspace"):  # Marlin's: of NVFP4 it reads `weight_scale`, which it made anew
        held.pop("blockscale_swizzled", None)
    return [
        tensor
        for name, tensor in held.items()
        if tensor.shape[:1] == (experts.num_local_experts,)
        and NO_WEIGHTS.match(name) is None
        and LEFT_OVER.get(name) not in held
    ]


def _tensors_in(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth < MAX_DEPTH:
        parts = value if isinstance(value, (list, tuple)) else getattr(value, "__dict__", {}).values()
        for part in parts:
            yield from _tensors_in(part, depth + 1)


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


def watch_forwards(watch: Any) -> None:
    """Call `watch.begin(forward_batch)` and, when it is launched, `watch.end()` at every forward from now on.

    `ModelRunner.forward` asks for the global recorder anew each time, so one may stand in front of it.
    """
    set_global_expert_distribution_recorder(
        _WatchedForwards(get_global_expert_distribution_recorder(), watch)
    )


class _WatchedForwards:
    """SGLang's expert distribution recorder with a watch around each forward."""

    def __init__(self, recorder: Any, watch: Any) -> None:
        self._recorder = recorder
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)

    @contextmanager
    def with_forward_pass(self, forward_pass_id: int, forward_batch: Any) -> Iterator[dict[str, Any]]:
        self._watch.begin(forward_batch)
        with self._recorder.with_forward_pass(forward_pass_id, forward_batch) as outputs:
            yield outputs
        self._watch.end()
