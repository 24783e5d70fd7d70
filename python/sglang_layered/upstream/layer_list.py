"""Layer ranges of a model that SGLang cannot cut into pipeline stages: its forward loops over all its layers.

Nothing of the model is known by name. A few tokens go through all layers while the server starts; what one
layer returns and the next one takes are the rows (`Flow`). To run a range, the layers before it return the
rows they are given, its first layer starts from them, and its last one ends the forward. Layers are shadowed
in their modules' attribute dictionaries, so nothing of the model is changed.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from torch import nn

from sglang_layered.core.plan import LayerGroup
from sglang_layered.upstream.layer_ranges import Kwargs, LayerRanges, unfit

Forward: TypeAlias = Callable[..., Any]


class Reached(Exception):
    """Ends a forward where a range ends: nothing after its last layer runs, whatever the model has there."""

    def __init__(self, rows: dict[str, Any]) -> None:
        super().__init__()
        self.rows = rows


@dataclass(frozen=True, slots=True)
class Flow:
    """How rows pass from layer to layer.

    `names` has for each value that a layer returns the argument that it is to the next layer, None for a
    value that no layer takes. `is_tuple` is False for layers that return one tensor.
    """

    names: tuple[str | None, ...]
    is_tuple: bool

    def taken(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The rows among a layer's arguments."""
        return {name: arguments.get(name) for name in self.names if name is not None}

    def given(self, output: Any) -> dict[str, Any]:
        """The rows in what a layer returned."""
        values = _values(output)
        return {name: value for name, value in zip(self.names, values, strict=True) if name is not None}

    def output(self, rows: PPProxyTensors) -> Any:
        """What a layer would have returned with these rows."""
        values = tuple(None if name is None else rows[name] for name in self.names)
        return values if self.is_tuple else values[0]


class Layer:
    """One layer, and the forward that stands for it while a range runs."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._forward: Forward = module.forward
        self._signature = inspect.signature(module.forward)

    def bound(self, args: Any, kwargs: Any) -> inspect.BoundArguments:
        """The arguments of a call by name."""
        return self._signature.bind(*args, **kwargs)

    def noted(self, calls: list[tuple[dict[str, Any], Any]], *args: Any, **kwargs: Any) -> Any:
        """Run and note arguments and result."""
        output = self._forward(*args, **kwargs)
        calls.append((dict(self.bound(args, kwargs).arguments), output))
        return output

    def resumed(self, rows: PPProxyTensors, *args: Any, **kwargs: Any) -> Any:
        """Run from the given rows, whatever the loop hands over."""
        call = self.bound(args, kwargs)
        call.arguments.update(rows.tensors)
        return self._forward(*call.args, **call.kwargs)

    def entered(self, flow: Flow, *args: Any, **kwargs: Any) -> Any:
        """End the forward before this layer."""
        raise Reached(flow.taken(self.bound(args, kwargs).arguments))

    def last(self, run: Forward | None, flow: Flow, *args: Any, **kwargs: Any) -> Any:
        """End the forward after this layer; `run` is its forward where another stands for it already."""
        raise Reached(flow.given((run or self._forward)(*args, **kwargs)))


class ListRanges(LayerRanges):
    """Layer ranges of a model with one list of layers.

    Args:
        layers: the modules, in order.
        whole: runs the model's forward on a few tokens, once.

    Raises:
        UnsupportedError: rows do not pass from layer to layer alone; it names the layer.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], whole: Callable[[], int]) -> None:
        self._model = model
        self._layers = [Layer(module) for module in layers]
        self.num_layers = len(self._layers)
        modules = list(model.modules())
        self._embeddings = [
            module
            for module in modules
            if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
        ]
        self._flow = self._seen(whole)

    def _forward(
        self, batch: ForwardBatch, layers: LayerGroup, rows: PPProxyTensors | None, last: bool, kwargs: Kwargs
    ) -> Any:
        if rows is not None and batch.input_embeds is not None:
            batch = replace(batch, input_embeds=None)  # multimodal models write what they embed into it
        with _shadowed(self._stand_ins(layers, rows, last)):
            try:
                # Some models count positions up in place (srt/models/gemma3_mm.py), once a forward.
                output = self._model.forward(batch.input_ids, batch.positions.clone(), batch, **kwargs)
            except Reached as reached:
                return PPProxyTensors(reached.rows)
        return output

    def _stand_ins(
        self, layers: LayerGroup, rows: PPProxyTensors | None, last: bool
    ) -> list[tuple[nn.Module, Forward]]:
        start, end, run = layers.start, layers.end, None
        shadows: list[tuple[nn.Module, Forward]] = []
        if rows is not None:
            sample = next(tensor for tensor in rows.tensors.values() if tensor is not None)
            shadows += [(module, partial(_no_embedding, module, sample)) for module in self._embeddings]
            passing = partial(_passing, self._flow.output(rows))
            shadows += [(layer.module, passing) for layer in self._layers[:start]]
            if start < end:
                run = partial(self._layers[start].resumed, rows)
                shadows.append((self._layers[start].module, run))
        if not last:
            edge = self._layers[max(end - 1, 0)]
            ending = partial(edge.last, run if end - start == 1 else None) if end else edge.entered
            shadows.append((edge.module, partial(ending, self._flow)))
        return shadows

    def _seen(self, whole: Callable[[], int]) -> Flow:
        """How rows were seen to pass."""
        calls: list[tuple[dict[str, Any], Any]] = []
        with _shadowed([(layer.module, partial(layer.noted, calls)) for layer in self._layers]):
            num_rows = whole()
        if len(calls) != self.num_layers or self.num_layers == 1:
            raise unfit(self._model, f"{self.num_layers} layers are called {len(calls)} times")
        flows = [_flow(before[1], after[0]) for before, after in zip(calls, calls[1:], strict=False)]
        for layer, flow in enumerate(flows, start=1):
            if flow != flows[0] or not any(flow.names):
                raise unfit(self._model, f"layer {layer} does not take what the layer before returns")
            for name, value in flow.given(calls[layer - 1][1]).items():
                if value.shape[0] != num_rows:
                    raise unfit(self._model, f"{name} of layer {layer} has no row for each token")
        return flows[0]


def find_layers(model: nn.Module) -> Sequence[nn.Module] | None:
    """The one list of modules of a model each of which attends to the KV cache, or None."""
    found: list[nn.ModuleList] = []
    inside: set[nn.Module] = set()
    for module in model.modules():  # an outer list before those in its layers
        if isinstance(module, nn.ModuleList) and module not in inside and all(map(_attends, module)):
            found.append(module)
            inside.update(module.modules())
    return list(found[0]) if len(found) == 1 and len(found[0]) else None


def _attends(layer: nn.Module) -> bool:
    return any(isinstance(module, RadixAttention) for module in layer.modules())


def _flow(output: Any, arguments: Mapping[str, Any]) -> Flow:
    names = [
        next((name for name, taken in arguments.items() if taken is value), None)
        if isinstance(value, torch.Tensor)
        else None
        for value in _values(output)
    ]
    return Flow(tuple(names), isinstance(output, tuple))


def _values(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


def _passing(output: Any, *args: Any, **kwargs: Any) -> Any:
    return output


def _no_embedding(
    module: VocabParallelEmbedding, sample: torch.Tensor, ids: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Rows of zeros: the layers get theirs otherwise, and where embeddings go elsewhere the probe tells."""
    return sample.new_zeros((*ids.shape, module.embedding_dim))


@contextmanager
def _shadowed(forwards: list[tuple[nn.Module, Forward]]) -> Iterator[None]:
    # A module may have such an entry already: SGLang's offloader makes one (srt/utils/offloader.py).
    before = [(vars(module), vars(module).get("forward")) for module, _ in forwards]
    try:
        for module, forward in forwards:
            vars(module)["forward"] = forward
        yield
    finally:
        for attributes, forward in before:
            attributes.pop("forward", None)
            if forward is not None:
                attributes["forward"] = forward
