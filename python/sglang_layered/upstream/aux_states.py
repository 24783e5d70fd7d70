"""Rows that a draft reads: of some layers (EAGLE3), gathered over the groups of a cohort, and embeddings.

SGLang's models gather them in a list of one forward, and hand it on where the last layer runs; the layers of
a group before lose theirs. So a range of layers is run in parts, which end where rows are to be kept: what a
layer is given is what a model keeps of it. The rows go with the prompt's activations from group to group.
Upstream: `set_eagle3_layers_to_capture` and `forward` of the models in srt/models.

A draft of a multimodal model reads what the encoder made of images, which SGLang leaves on the one batch that
embeds a prompt. Upstream: srt/managers/mm_utils.py `general_mm_embed_routine`, srt/models/qwen3_5_mtp.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from torch import nn

from sglang_layered.core.plan import LayerGroup
from sglang_layered.upstream.models import Kwargs, LayerRanges, PipelineRanges, unfit

KEEPS = "capture_aux_hidden_states"
KEPT = "layered_aux_{}"  # by layer; no model has activations of this name
EMBEDS = "layered_embeds"  # nor of this one


def with_aux_states(model: nn.Module, ranges: LayerRanges) -> LayerRanges:
    """The same ranges, which also keep what the model was told to keep for a draft.

    Raises:
        UnsupportedError: the model keeps something in a way that is not known here.
    """
    keepers = keepers_of(model)
    if not keepers:
        return ranges
    if not isinstance(ranges, PipelineRanges):
        raise unfit(model, "a draft reads some layers' rows, which its list of layers does not hand on")
    return AuxStates(model, ranges, keepers)


def keepers_of(model: nn.Module) -> list[Kwargs]:
    """Attributes of the modules that expect kept rows of the stack of layers."""
    return [vars(part) for part in model.modules() if vars(part).get(KEEPS)]


class AuxStates(LayerRanges):
    """Layer ranges of a model whose draft reads the rows before some layers, of prompts."""

    def __init__(self, model: nn.Module, ranges: PipelineRanges, keepers: list[Kwargs]) -> None:
        """`keepers` are the attributes of the modules that expect them of the stack of layers."""
        self._ranges, self._keepers = ranges, keepers
        self._stack = ranges.stack
        self.num_layers, self.first_layer, self.has_head = (
            ranges.num_layers,
            ranges.first_layer,
            ranges.has_head,
        )
        marks = list(getattr(self._stack, "layers_to_capture", ()))
        if not marks or not all(0 <= mark < self.num_layers for mark in marks):
            raise unfit(model, f"a draft reads the rows before its layers {marks}")
        self._marks = marks

    def _forward(
        self, batch: ForwardBatch, layers: LayerGroup, rows: PPProxyTensors | None, last: bool, kwargs: Kwargs
    ) -> Any:
        start, end = layers.start, layers.end
        kept = {} if rows is None else _kept_in(rows)
        if rows is not None and kept:
            rows = PPProxyTensors({name: part for name, part in rows.tensors.items() if name not in kept})
        if rows is None and start in self._marks and start < end:  # it is given what was embedded
            rows = self._part(batch, start, start, None, kwargs)
        cuts = sorted({start, end, *(mark for mark in self._marks if start < mark < end)})
        for low, high in pairwise(cuts):
            if low in self._marks and rows is not None:
                kept[KEPT.format(low)] = _whole(rows)
            if high == end:
                break
            rows = self._part(batch, low, high, rows, kwargs)
        else:
            low = start
        if last:
            with self._handed_on([kept[KEPT.format(mark)] for mark in self._marks]):
                return self._ranges.run(batch, low, end, rows, last=True, **kwargs)
        output = self._part(batch, low, end, rows, kwargs)
        return PPProxyTensors(output.tensors | kept)

    def _part(
        self, batch: ForwardBatch, low: int, high: int, rows: PPProxyTensors | None, kwargs: Kwargs
    ) -> PPProxyTensors:
        """Layers that are not the last ones, of which a model expects no kept rows."""
        for keeper in self._keepers:
            keeper[KEEPS] = False
        try:
            output: PPProxyTensors = self._ranges.run(batch, low, high, rows, **kwargs)
            return output
        finally:
            for keeper in self._keepers:
                keeper[KEEPS] = True

    @contextmanager
    def _handed_on(self, kept: list[torch.Tensor]) -> Iterator[None]:
        """Inside, the stack of layers gives these rows beside its own, in place of those of its list."""
        forward = self._stack.forward

        def with_kept(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            return (output[0] if isinstance(output, tuple) else output), kept

        vars(self._stack)["forward"] = with_kept
        try:
            yield
        finally:
            del vars(self._stack)["forward"]


class KeptEmbeds(LayerRanges):
    """Layer ranges of a multimodal model whose draft reads the embeddings of prompts with images."""

    def __init__(self, ranges: LayerRanges) -> None:
        self._ranges = ranges
        self.num_layers, self.first_layer, self.has_head = (
            ranges.num_layers,
            ranges.first_layer,
            ranges.has_head,
        )

    def _forward(
        self, batch: ForwardBatch, layers: LayerGroup, rows: PPProxyTensors | None, last: bool, kwargs: Kwargs
    ) -> Any:
        kept = None if rows is None else rows.tensors.get(EMBEDS)
        if rows is not None and kept is not None:
            rows = PPProxyTensors({name: part for name, part in rows.tensors.items() if name != EMBEDS})
            batch.mm_input_embeds = kept if last else None  # from there SGLang hands it on with the logits
        output = self._ranges.run(batch, layers.start, layers.end, rows, last=last, **kwargs)
        if rows is None and batch.mm_input_embeds is not None:
            kept = batch.mm_input_embeds.clone()  # the layers' norms add to these rows in place
        if kept is not None and not last:
            output.tensors[EMBEDS] = kept
        return output


def _kept_in(rows: PPProxyTensors) -> dict[str, torch.Tensor]:
    return {name: part for name, part in rows.tensors.items() if name.startswith(KEPT.format(""))}


def _whole(rows: PPProxyTensors) -> torch.Tensor:
    """What a layer is given, with what was added on the way to it."""
    hidden, residual = rows.tensors["hidden_states"], rows.tensors.get("residual")
    return hidden.clone() if residual is None else hidden + residual
