"""Any layer range [start, end) of an SGLang model, as a virtual pipeline stage or without one.

SGLang's models already run the layers between `start_layer` and `end_layer` and take and return
PPProxyTensors when the stage is not the first or the last. This is the one place that borrows that: it sets
the two numbers and stands in for the pipeline group while one range runs. Upstream: `forward` of the models
in srt/models, srt/layers/communicator.py, `ModelRunner._extend_forward_kwargs`.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from torch import nn

from sglang_layered.core.plan import LayerGroup
from sglang_layered.errors import UnsupportedError
from sglang_layered.upstream.lora import Adapters

Kwargs: TypeAlias = dict[str, Any]
# What is written; the second pair lies behind properties of the first one's names (srt/models/qwen3_5.py).
BOUNDS = (("start_layer", "end_layer"), ("_start_layer", "_end_layer"))
STACK_PARTS = {"embed_tokens", "layers", "norm"}
# Models of this kind whose tokens the tests compare with SGLang's own and Hugging Face's (docs/models.md).
TESTED = frozenset(
    {"Ernie4_5_MoeForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Qwen3NextForCausalLM"}
)
EMBEDDINGS = ("input_embeds", "inputs_embeds")  # what a stack calls the rows that it is given


class LayerRanges(ABC):
    """The layers of one model, any range at a time."""

    num_layers: int
    first_layer = 0
    has_head = True

    def run(
        self,
        batch: ForwardBatch,
        start: int,
        end: int,
        rows: PPProxyTensors | None,
        *,
        last: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run layers [start, end) on `rows`; None stands for the embedded tokens of `batch`.

        Returns:
            The rows after layer end - 1 as PPProxyTensors or, if `last`, their logits.
        """
        output = self._forward(batch, LayerGroup(start, end), rows, last, kwargs)
        return output if last else with_pending_sum(output)

    @abstractmethod
    def _forward(
        self, batch: ForwardBatch, layers: LayerGroup, rows: PPProxyTensors | None, last: bool, kwargs: Kwargs
    ) -> Any:
        """The model's forward over these layers."""


def with_pending_sum(rows: PPProxyTensors) -> PPProxyTensors:
    """Rows whose last layer left its sum over tensor ranks to the next layer's norm, with the sum done.

    Upstream marks such rows (srt/layers/communicator.py); the mark is lost when rows are joined or cut, and
    of the models only srt/models/qwen2_moe.py sums at the end of a pipeline stage itself.
    """
    hidden = rows.tensors.get("hidden_states")
    if getattr(hidden, "_sglang_needs_allreduce_fusion", False):
        rows.tensors["hidden_states"] = tensor_model_parallel_all_reduce(hidden)
    return rows


class VirtualStage:
    """A pipeline group that says where the current range stands; everything else is the real group's."""

    def __init__(self, group: Any, *, is_first: bool, is_last: bool) -> None:
        self._group = group
        self.is_first_rank = is_first
        self.is_last_rank = is_last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


class PipelineRanges(LayerRanges):
    """Layer ranges of a model that SGLang can cut into pipeline stages.

    It writes the modules' attribute dictionaries: `nn.Module.__setattr__` takes ten times as long, six times
    a step.

    Raises:
        UnsupportedError: the model does not offer the pipeline interface that layer ranges need.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        modules = [vars(module) for module in model.modules()]
        self._grouped = [attributes for attributes in modules if "pp_group" in attributes]
        stacks = [(attributes, names) for attributes in modules if (names := _bounds_of(attributes))]
        if len(stacks) != 1 or not self._grouped:
            raise _unfit(model)
        self._stack, (self._start, self._end) = stacks[0]
        self.first_layer = self._stack[self._start]
        self.num_layers: int = self._stack[self._end]
        group = self._grouped[0]["pp_group"]
        self.has_head = group.is_last_rank
        self._stages = {
            (first, last): VirtualStage(group, is_first=first, is_last=last)
            for first in (False, True)
            for last in (False, True)
        }

    def _forward(
        self, batch: ForwardBatch, layers: LayerGroup, rows: PPProxyTensors | None, last: bool, kwargs: Kwargs
    ) -> Any:
        with self._stage(layers.start, layers.end, first=rows is None, last=last):
            return self._model.forward(
                batch.input_ids, batch.positions, batch, pp_proxy_tensors=rows, **kwargs
            )

    @contextmanager
    def _stage(self, start: int, end: int, *, first: bool, last: bool) -> Iterator[None]:
        groups = [attributes["pp_group"] for attributes in self._grouped]
        bounds = (self._stack[self._start], self._stack[self._end])
        virtual = self._stages[first, last]
        try:
            # With no layers (start == end) the first stage still embeds, and the last one makes logits.
            self._stack[self._start], self._stack[self._end] = start, end
            for attributes in self._grouped:
                attributes["pp_group"] = virtual
            yield
        finally:
            self._stack[self._start], self._stack[self._end] = bounds
            for attributes, group in zip(self._grouped, groups, strict=True):
                attributes["pp_group"] = group


class ListRanges(LayerRanges):
    """Layer ranges of a model whose forward loops over all its layers: SGLang cannot cut it into stages.

    While a range runs, the stack's list of layers is that range's, the first of them starts from the given
    rows, and the final norm hands out what the last one left. Each layer takes `hidden_states` and
    `residual`. Layers and norm are shadowed in the module's attribute dictionary, so nothing of the model is
    changed.

    Raises:
        UnsupportedError: the model is not among those that were tested this way.
    """

    def __init__(self, model: nn.Module) -> None:
        stacks = [module for module in model.modules() if vars(module)["_modules"].keys() >= STACK_PARTS]
        if type(model).__name__ not in TESTED or len(stacks) != 1:
            raise _unfit(model)
        self._model = model
        [self._stack] = stacks
        self._layers = list(self._stack.layers)
        self._signatures = [inspect.signature(layer.forward) for layer in self._layers]  # differ in a hybrid
        taken = inspect.signature(self._stack.forward).parameters
        [self._embeds] = [name for name in EMBEDDINGS if name in taken]
        self.num_layers = len(self._layers)

    def _forward(
        self, batch: ForwardBatch, layers: LayerGroup, rows: PPProxyTensors | None, last: bool, kwargs: Kwargs
    ) -> Any:
        entry = None if rows is None else (rows["hidden_states"], rows["residual"])
        if entry is not None:
            kwargs[self._embeds] = torch.empty_like(entry[0])  # embeds nothing; only its type is read
        stack: list[Any] = self._layers[layers.start : layers.end]
        norm = _Norm(self._stack.norm, None if stack else entry, is_open=last)
        if entry is not None and stack:
            stack[0] = _Resumed(stack[0], self._signatures[layers.start], entry)
        with self._shadowed(layers=stack, norm=norm):
            forward = self._model.forward if last else self._stack.forward
            output = forward(batch.input_ids, batch.positions, batch, **kwargs)
        return output if last else PPProxyTensors(norm.seen)

    @contextmanager
    def _shadowed(self, **parts: Any) -> Iterator[None]:
        attributes = vars(self._stack)
        attributes.update(parts)
        try:
            yield
        finally:
            for name in parts:
                del attributes[name]


class _Resumed:
    """A layer that starts from the given rows, whatever the loop hands it."""

    def __init__(self, layer: nn.Module, signature: inspect.Signature, entry: tuple[Any, Any]) -> None:
        self._layer = layer
        self._signature = signature
        self._entry = entry

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._signature.bind(*args, **kwargs)
        call.arguments["hidden_states"], call.arguments["residual"] = self._entry
        return self._layer(*call.args, **call.kwargs)


class _Norm:
    """Stands where the final norm stands: normalises if `is_open`, else notes the rows and passes them."""

    def __init__(self, norm: Any, entry: tuple[Any, Any] | None, *, is_open: bool) -> None:
        self._norm = norm
        self._entry = entry
        self._is_open = is_open
        self.seen: dict[str, Any] = {}

    def __call__(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        is_alone = residual is None  # then the loop expects the rows alone
        if self._entry is not None:
            hidden_states, residual = self._entry
        if not self._is_open:
            self.seen = {"hidden_states": hidden_states, "residual": residual}
        elif residual is None:
            return self._norm(hidden_states)
        else:
            hidden_states, residual = self._norm(hidden_states, residual)
        return hidden_states if is_alone else (hidden_states, residual)


def prompt_kwargs(model_runner: Any, batch: ForwardBatch) -> Kwargs:
    """What the model's forward takes beside a prompt's tokens: embeddings that a client gave."""
    kwargs: Kwargs = model_runner._extend_forward_kwargs(batch, None)
    # SGLang leaves this key out for a model without pipeline stages, and LayerRanges gives it itself.
    kwargs.pop("pp_proxy_tensors", None)
    return kwargs


class LayerCalls:
    """The layers of one ModelRunner, range by range; rows are [rows of the batch, ...] a key.

    Raises:
        UnsupportedError: the model's layers cannot be run in ranges.
    """

    def __init__(self, model_runner: Any, ranges: LayerRanges | None = None) -> None:
        self._model_runner = model_runner
        self._ranges = _ranges_of(model_runner.model) if ranges is None else ranges
        self._adapters = Adapters.of(model_runner)
        self._run = self._ranges.run if self._adapters is None else partial(self._adapted, self._adapters)
        self.num_layers = self._ranges.num_layers  # where a pipeline stage ends, in the whole model's count

    def embed(self, batch: ForwardBatch) -> PPProxyTensors:
        """Prompt rows before layer 0."""
        return self._run(batch, 0, 0, None, **prompt_kwargs(self._model_runner, batch))

    def below(self, batch: ForwardBatch, end: int, rows: PPProxyTensors | None = None) -> PPProxyTensors:
        """Decode rows, from their tokens or from those of the stage before, through layers up to `end`."""
        return self._run(batch, self._ranges.first_layer, end, rows)

    def layers(self, batch: ForwardBatch, start: int, end: int, rows: PPProxyTensors) -> PPProxyTensors:
        """Rows through layers [start, end)."""
        return self._run(batch, start, end, rows)

    def head(self, batch: ForwardBatch, rows: PPProxyTensors, start: int) -> Any:
        """Rows through layers [start, num_layers) and, where the model ends there, to their logits."""
        has_head = self._ranges.has_head
        if start == self.num_layers and not has_head:
            return rows
        return self._run(batch, start, self.num_layers, rows, last=has_head)

    def _adapted(self, adapters: Adapters, batch: ForwardBatch, *args: Any, **kwargs: Any) -> Any:
        adapters.use(batch)
        return self._ranges.run(batch, *args, **kwargs)


def _ranges_of(model: nn.Module) -> LayerRanges:
    can_be_cut = any(_bounds_of(vars(module)) for module in model.modules())
    return PipelineRanges(model) if can_be_cut else ListRanges(model)


def _bounds_of(attributes: Kwargs) -> tuple[str, str] | None:
    """What a module calls its first layer and the one after its last, if it has any."""
    return next((names for names in BOUNDS if attributes.keys() >= set(names)), None)


def _unfit(model: nn.Module) -> UnsupportedError:
    return UnsupportedError(
        f"--prefill-mode layered cannot serve {type(model).__name__}: its layers cannot be run in ranges"
        " (SGLang has no pipeline parallelism for it); serve it in chunked mode"
    )
