"""Layer ranges of a model that SGLang cannot cut into pipeline stages: its forward loops over all its layers.

Nothing of the model is known by name. A few tokens go through all layers while the server starts; what one
layer returns and the next one takes are the rows (`Flow`). To run a range, the layers before it return the
rows they are given, its first layer starts from them, and its last one ends the forward. The list is shadowed
in its module's attribute dictionary, so nothing of the model is changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.radix_linear_attention import RadixLinearAttention
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from torch import nn

from sglang_layered.core.plan import LayerGroup
from sglang_layered.upstream.layer_flow import Flow, KeptFlow, Layer, Reached, StandIn, flow_of
from sglang_layered.upstream.mixers import mixers_of
from sglang_layered.upstream.models import Kwargs, LayerRanges, unfit
from sglang_layered.upstream.releases import boundaries

Shadow: TypeAlias = tuple[dict[str, Any], str, Any]  # attributes of a module, a name, what it stands for


class ListRanges(LayerRanges):
    """Layer ranges of a model with one list of layers.

    Args:
        layers: the modules, in order; the model's own list.
        whole: runs the model's forward on a few tokens, once.

    Raises:
        UnsupportedError: rows do not pass from layer to layer alone; it names the layer.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList, whole: Callable[[], int]) -> None:
        self._model = model
        self._output: Any = None  # what layers before the range return
        self._layers = [Layer(module, self._pass) for module in layers]
        self._modules: list[Any] = [layer.module for layer in self._layers]
        self._passing: list[Any] = [layer.passing for layer in self._layers]
        self.num_layers = len(self._layers)
        modules = list(model.modules())
        self._homes = [
            (vars(module), name)
            for module in modules
            for name, child in module.named_children()
            if child is layers
        ]
        self._embeddings = [
            module
            for module in modules
            if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
        ]
        try:
            handover = boundaries.handover(layers)
        except NotImplementedError as why:
            raise unfit(model, str(why)) from why
        self._flow = self._seen(whole, handover)

    def _forward(
        self, batch: ForwardBatch, layers: LayerGroup, rows: PPProxyTensors | None, last: bool, kwargs: Kwargs
    ) -> Any:
        if rows is not None and batch.input_embeds is not None:
            batch = replace(batch, input_embeds=None)  # multimodal models write what they embed into it
        shadows = self._instead(self._range(batch, layers, rows, last))
        if rows is not None:
            shadows += self._unembedded(rows)
        with _shadowed(shadows):
            try:
                # Some models count positions up in place (srt/models/gemma3_mm.py), once a forward.
                return self._model.forward(batch.input_ids, batch.positions.clone(), batch, **kwargs)
            except Reached as reached:
                return PPProxyTensors(reached.rows)

    def _range(
        self, batch: ForwardBatch, layers: LayerGroup, rows: PPProxyTensors | None, last: bool
    ) -> list[Any]:
        """The model's list of layers for this range."""
        start, end, flow = layers.start, layers.end, self._flow
        stack = self._modules.copy()
        if rows is not None:
            handed = partial(flow.entered, start, rows, batch)
            self._output = flow.passed(rows)
            stack[:start] = self._passing[:start]
            if start < end:
                stack[start] = self._layers[start].resumed(handed)
            elif start:
                before = self._modules[start - 1]
                stack[start - 1] = StandIn(before, lambda *args, **kwargs: flow.output(handed()))
        if not last:
            edge = max(end - 1, 0)
            layer = self._layers[edge]
            stack[edge] = layer.last(flow, batch, stack[edge]) if end else layer.entered(flow, batch)
        return stack

    def _pass(self, *args: Any, **kwargs: Any) -> Any:
        return self._output

    def _instead(self, stack: list[Any]) -> list[Shadow]:
        return [(*home, stack) for home in self._homes]

    def _unembedded(self, rows: PPProxyTensors) -> list[Shadow]:
        """Zeros for embeddings: layers get their rows otherwise; were they for more, the probe would tell."""
        sample = next(tensor for tensor in rows.tensors.values() if tensor is not None)

        def zeros(width: int, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return sample.new_zeros((*ids.shape, width))

        return [(vars(each), "forward", partial(zeros, each.embedding_dim)) for each in self._embeddings]

    def _seen(self, whole: Callable[[], int], handover: Any) -> Flow:
        """How rows were seen to pass."""
        calls: list[tuple[dict[str, Any], Any]] = []
        with _shadowed(self._instead([layer.noting(calls) for layer in self._layers])):
            num_rows = whole()
        if len(calls) != self.num_layers or self.num_layers == 1:
            raise unfit(self._model, f"{self.num_layers} layers are called {len(calls)} times")
        flows = [flow_of(before[1], after[0]) for before, after in pairwise(calls)]
        for layer, flow in enumerate(flows, start=1):
            if flow != flows[0] or not any(flow.names):
                raise unfit(self._model, f"layer {layer} does not take what the layer before returns")
            for name, value in flow.given(calls[layer - 1][1]).items():
                if isinstance(value, torch.Tensor) and value.shape[0] != num_rows:
                    raise unfit(self._model, f"{name} of layer {layer} has no row for each token")
        if handover is None:
            return flows[0]
        return KeptFlow(flows[0].names, flows[0].is_tuple, handover)


def find_layers(model: nn.Module) -> nn.ModuleList | None:
    """The one list of modules of a model each of which attends to the KV cache or has a state, or None."""
    found: list[nn.ModuleList] = []
    inside: set[nn.Module] = set()
    for module in model.modules():  # an outer list before those in its layers
        if isinstance(module, nn.ModuleList) and module not in inside and all(map(_attends, module)):
            found.append(module)
            inside.update(module.modules())
    return found[0] if len(found) == 1 and len(found[0]) else None


def _attends(layer: nn.Module) -> bool:
    states = any(isinstance(module, (RadixAttention, RadixLinearAttention)) for module in layer.modules())
    return states or bool(mixers_of(layer))


@contextmanager
def _shadowed(shadows: list[Shadow]) -> Iterator[None]:
    # A module may have a `forward` of its own already: SGLang's offloader makes one (srt/utils/offloader.py).
    before = [(attributes, name, attributes.get(name)) for attributes, name, _ in shadows]
    try:
        for attributes, name, value in shadows:
            attributes[name] = value
        yield
    finally:
        for attributes, name, value in before:
            del attributes[name]
            if value is not None:
                attributes[name] = value
