"""Layer ranges of a model that SGLang cannot cut into pipeline stages: its forward loops over all its layers.

Nothing of the model is known by name. A few tokens go through all layers while the server starts; what one
layer returns and the next one takes are the rows (`Flow`). To run a range, the layers before it return the
rows they are given, its first layer starts from them, and its last one ends the forward. The list is shadowed
in its module's attribute dictionary, so nothing of the model is changed.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from sglang_layered.upstream.mixers import mixers_of
from sglang_layered.upstream.models import Kwargs, LayerRanges, unfit
from sglang_layered.upstream.releases import boundaries

Call: TypeAlias = Callable[..., Any]
Shadow: TypeAlias = tuple[dict[str, Any], str, Any]  # attributes of a module, a name, what it stands for


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
        """What is handed over, among a layer's arguments."""
        return {name: arguments.get(name) for name in self.names if name is not None}

    def given(self, output: Any) -> dict[str, Any]:
        """What is handed over, in what a layer returned."""
        values = _values(output)
        return {name: value for name, value in zip(self.names, values, strict=True) if name is not None}

    def output(self, handed: Mapping[str, Any]) -> Any:
        """What a layer would have returned with this."""
        values = tuple(None if name is None else handed[name] for name in self.names)
        return values if self.is_tuple else values[0]

    def passed(self, rows: PPProxyTensors) -> Any:
        """What layers before a range return, which its first layer does not look at."""
        return self.output(rows.tensors)

    def left(self, handed: dict[str, Any], batch: ForwardBatch) -> dict[str, Any]:
        """The rows in what is handed over."""
        return handed

    def entered(self, number: int, rows: PPProxyTensors, batch: ForwardBatch) -> dict[str, Any]:
        """What is handed over to layer `number` for it to have these rows."""
        return rows.tensors


@dataclass(frozen=True, slots=True)
class KeptFlow(Flow):
    """Of layers that hand one value over and keep what else is theirs on the batch (`handover`)."""

    handover: Any

    def passed(self, rows: PPProxyTensors) -> Any:
        """Of the right shape; what else is on the batch is not theirs."""
        return self.output(dict.fromkeys(filter(None, self.names), rows["hidden_states"]))

    def left(self, handed: dict[str, Any], batch: ForwardBatch) -> dict[str, Any]:
        """As a pipeline stage sends them."""
        [value] = handed.values()
        rows: dict[str, Any] = self.handover.leave(value, batch)
        return rows

    def entered(self, number: int, rows: PPProxyTensors, batch: ForwardBatch) -> dict[str, Any]:
        """As a pipeline stage takes them; `number` may be behind the last layer."""
        [name] = filter(None, self.names)
        return {name: self.handover.enter(number, rows, batch)}


class StandIn:
    """Stands in the list where a layer stands; a loop may ask it for the layer's attributes."""

    def __init__(self, layer: nn.Module, call: Call) -> None:
        self._layer = layer
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the loop gets from this layer."""
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class Layer:
    """One layer, and what is called in its place while a range runs."""

    def __init__(self, module: nn.Module, passing: Call) -> None:
        self.module = module
        self.passing = StandIn(module, passing)
        self._signature = inspect.signature(module.forward)

    def arguments(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """The arguments of a call by name."""
        return dict(self._signature.bind(*args, **kwargs).arguments)

    def noting(self, calls: list[tuple[dict[str, Any], Any]]) -> StandIn:
        """Runs, and notes arguments and result."""

        def run(*args: Any, **kwargs: Any) -> Any:
            calls.append((self.arguments(args, kwargs), self.module(*args, **kwargs)))
            return calls[-1][1]

        return StandIn(self.module, run)

    def resumed(self, handed: Call) -> StandIn:
        """Runs with what `handed` gives, whatever the loop hands over."""

        def run(*args: Any, **kwargs: Any) -> Any:
            call = self._signature.bind(*args, **kwargs)
            call.arguments.update(handed())
            return self.module(*call.args, **call.kwargs)

        return StandIn(self.module, run)

    def entered(self, flow: Flow, batch: ForwardBatch) -> StandIn:
        """Ends the forward before this layer."""

        def stop(*args: Any, **kwargs: Any) -> Any:
            raise Reached(flow.left(flow.taken(self.arguments(args, kwargs)), batch))

        return StandIn(self.module, stop)

    def last(self, flow: Flow, batch: ForwardBatch, run: Call) -> StandIn:
        """Ends the forward after this layer, which `run` runs."""

        def stop(*args: Any, **kwargs: Any) -> Any:
            raise Reached(flow.left(flow.given(run(*args, **kwargs)), batch))

        return StandIn(self.module, stop)


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
        flows = [_flow(before[1], after[0]) for before, after in pairwise(calls)]
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


def _flow(output: Any, arguments: Mapping[str, Any]) -> Flow:
    names = [
        next((name for name, taken in arguments.items() if taken is value), None)
        if isinstance(value, boundaries.HANDED)
        else None
        for value in _values(output)
    ]
    return Flow(tuple(names), isinstance(output, tuple))


def _values(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


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
