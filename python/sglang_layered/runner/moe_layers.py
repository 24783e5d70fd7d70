"""The MoE layers of an SGLang model: where experts are chosen, how many, and how many bytes each takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.topk import TopK
from torch import nn

from sglang_layered.errors import UnsupportedError
from sglang_layered.metrics.traffic import ExpertShape
from sglang_layered.runner.expert_bytes import expert_bytes


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
    def num_ids(self) -> int:
        """Ids that `local_ids` can hold are below this."""
        return self.num_local

    @property
    def top_k(self) -> int:
        """Routed experts that a row activates."""
        config = self.topk.topk_config
        return int(config.top_k) - int(config.num_fused_shared_experts)

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
        if self.num_local == self.num_routed and not self.topk.topk_config.num_fused_shared_experts:
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
        topk = next((child for child in children if isinstance(child, TopK)), None)
        experts = next((child for child in children if isinstance(child, FusedMoE)), None)
        if topk is not None and experts is not None:
            yield _layer(topk, experts)


def _layer(topk: nn.Module, experts: Any) -> MoeLayer:
    num_stored, num_shared = experts.num_local_experts, experts.num_fused_shared_experts
    num_local = num_stored - num_shared
    num_routed = experts.num_experts - num_shared
    first = experts.moe_ep_rank * num_local
    return MoeLayer(experts.layer_id, topk, first, num_local, num_routed, expert_bytes(experts))
