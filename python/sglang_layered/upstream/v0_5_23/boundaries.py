"""SGLang 0.5.23's layers: their residual lies on the batch, and each knows its neighbour when it is made.

A range enters and leaves as a pipeline stage does: by `from_pp` of its first layer, and by `to_pp`, which
completes every sum that is owed and takes the stream off the batch. No stage begins with rows at layer 0, and
none is without layers: for these two ranges there is a way in here. Upstream: srt/layers/layer_boundary/.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from sglang.srt.layers.layer_boundary.adapters.attention import AttentionInputs, get_attn_tp_context
from sglang.srt.layers.layer_boundary.contracts import BatchVariant
from sglang.srt.layers.layer_boundary.residual import batch as residual_batch
from sglang.srt.layers.layer_boundary.residual.add_norm import PLAIN_ADD
from sglang.srt.layers.layer_boundary.residual.stream import OwedOutput, ResidualStream
from sglang.srt.layers.layer_boundary.stage import StageBoundary
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.runtime_context import get_forward, get_parallel
from torch import nn

PROVES_STAGES = True
"""Whether ranges of a model with pipeline stages are compared with the whole model while a server starts.

Steps of a boundary are chosen when the model is built, for the neighbours that it has then.
"""

PROCESS_GROUP = get_parallel.__name__
"""What a stack of layers calls to ask past its own pipeline group (srt/models/kimi_k3.py)."""

HANDED: tuple[type, ...] = (torch.Tensor, OwedOutput)
"""What a layer may hand to the next one as its rows."""

FLAGS = {
    BatchVariant.CONTEXT_PARALLEL: "--enable-prefill-cp",
    BatchVariant.INPUT_SCATTERED: "--enable-attn-tp-input-scattered",
    BatchVariant.SEQUENCE_PARALLEL: "--enable-layernorm-sp",
    BatchVariant.UNPADDED: "--disable-attn-tp-gather",
}
"""By which a layer has rows of some batches elsewhere than those of others."""


class _Parallel:
    """The process's parallel groups, of which the pipeline's is this one."""

    def __init__(self, group: Any) -> None:
        self.pp_group = group

    def __getattr__(self, name: str) -> Any:
        return getattr(get_parallel(), name)


def process_group(group: Any) -> Callable[[], Any]:
    """What stands in the place of PROCESS_GROUP while this group is the process's."""
    parallel = _Parallel(group)
    return lambda: parallel


def with_ends(stack: nn.Module) -> tuple[str, list[Any]] | None:
    """The name that a stack has for its layers, and these with one more to enter by behind the last.

    None where ranges are entered without. It changes how layer 0 is entered with rows.

    Raises:
        NotImplementedError: with the reason why these layers cannot be run in ranges.
    """
    lists = [(name, child) for name, child in stack.named_children() if isinstance(child, nn.ModuleList)]
    for name, layers in lists:
        entries = _entries(layers)
        if entries:
            return name, [*layers, entries[max(entries)]]
    return None


class _Handover:
    """Rows of a list of layers that have boundaries."""

    def __init__(self, entries: Mapping[int, Any]) -> None:
        self._entries = entries

    def enter(self, number: int, rows: PPProxyTensors, batch: ForwardBatch) -> Any:
        return self._entries[number].from_pp(rows, batch)

    def leave(self, handed: Any, batch: ForwardBatch) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = residual_batch.to_pp(handed, batch).tensors
        return tensors


def handover(layers: nn.ModuleList) -> Any:
    """How rows enter and leave the layers of a list that do not just take and return them; None: they do.

    It has `enter(number, rows, batch)`, which gives what layer `number` takes (behind the last: what it would
    have returned), and `leave(handed, batch)`, which gives the rows in what a layer returned or was given.

    Raises:
        NotImplementedError: with the reason why these layers cannot be run in ranges.
    """
    entries = _entries(layers)
    if entries and len(entries) <= len(layers):
        missing = min(set(range(len(layers))) - entries.keys())
        raise NotImplementedError(f"layer {missing} has no boundary by which rows could enter it")
    return _Handover(entries) if entries else None


class _Behind:
    """Stands where a layer behind the last would, whatever a model calls the boundary that it enters by."""

    def __init__(self, last: StageBoundary) -> None:
        self._is_written = last.declaration.update.applied_at_exit

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def from_pp(self, rows: PPProxyTensors, batch: ForwardBatch, **_: Any) -> Any:
        """What the last layer handed on: with its sums done and, where it does not write it, a residual."""
        residual = None if self._is_written else rows["residual"]
        hidden, batch.residual_stream = ResidualStream.from_handoff(
            rows["hidden_states"], residual, PLAIN_ADD
        )
        return hidden


def _entries(layers: Iterable[nn.Module]) -> dict[int, Any]:
    """By which each layer is entered, and behind the last; layers of other stages have none."""
    found = {number: stages for number, layer in enumerate(layers) if (stages := _boundaries(layer))}
    entries: dict[int, Any] = {number: stages[0] for number, stages in found.items()}
    for number, stages in found.items():
        _refuse(number, stages)
    if found:
        first, last = min(found), max(found)
        entries[last + 1] = _Behind(found[last][-1])
        if entries[first].declaration.previous is None:
            vars(entries[first])["from_pp"] = _begin
    return entries


def _boundaries(layer: nn.Module) -> list[StageBoundary]:
    return [value for value in vars(layer).values() if isinstance(value, StageBoundary)]


def _begin(rows: PPProxyTensors, batch: ForwardBatch, **_: Any) -> torch.Tensor:
    """Embedded rows, as a model takes them that has embedded them itself."""
    residual_batch.start(batch)
    return rows["hidden_states"]


def _refuse(number: int, stages: Iterable[StageBoundary]) -> None:
    """What is known to go wrong at a cut before this layer; the rest is for the probe."""
    for variant in (variant for stage in stages for variant in stage.plan.paths):
        if variant is not BatchVariant.ORDINARY:
            raise NotImplementedError(f"with {FLAGS[variant]} ranks have rows of their own between layers")
    entry = next(iter(stages))
    edge, before = entry.plan.edges[BatchVariant.ORDINARY].incoming, entry.declaration.previous
    if edge.produced.layout.sharded or edge.residual.sharded:
        raise NotImplementedError(f"before layer {number} each rank has rows of its own")
    if before is not None and not (before.update.is_plain_add or before.update.applied_at_exit):
        raise NotImplementedError(f"layer {number} does the norm of the layer before it")


def give_rows(module: Any, rows: torch.Tensor, batch: ForwardBatch) -> None:
    """Let an attention module that computes its latent inputs itself do so for these rows."""
    given = get_forward().attn_inputs
    if given is not None:
        inputs = AttentionInputs(rows, batch, given.qkv_latent_func)
        get_attn_tp_context().set_attn_inputs(inputs)
