"""Any layer range [start, end) of an SGLang model, as a virtual pipeline stage or without one.

SGLang's models already run the layers between `start_layer` and `end_layer` and take and return
PPProxyTensors when the stage is not the first or the last. This is the one place that borrows that: it sets
the two numbers and stands in for the pipeline group while one range runs. Upstream: `forward` of the models
in srt/models, srt/layers/communicator.py, `ModelRunner._extend_forward_kwargs`.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeAlias

from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from torch import nn

from sglang_layered.core.plan import LayerGroup
from sglang_layered.errors import UnsupportedError
from sglang_layered.upstream.chosen_tokens import CHOSEN, asks_behind_the_last
from sglang_layered.upstream.images import Deepstack
from sglang_layered.upstream.lora import Adapters
from sglang_layered.upstream.releases import boundaries, forwarding

Kwargs: TypeAlias = dict[str, Any]
# What is written; the second pair lies behind properties of the first one's names (srt/models/qwen3_5.py).
BOUNDS = (("start_layer", "end_layer"), ("_start_layer", "_end_layer"))


def attend(backend: Any, batch: ForwardBatch | None) -> AbstractContextManager[None]:
    """Layers inside run the rows of this batch and attend with this backend; its KV pools are theirs."""
    context = ForwardContext(attn_backend=backend)
    manager: AbstractContextManager[None] = forward_context(
        context, **dict.fromkeys(forwarding.CONTEXT_TAKES, batch)
    )
    return manager


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


def unfit(model: nn.Module, why: str) -> UnsupportedError:
    """The refusal of a model whose layers cannot be run in ranges."""
    return UnsupportedError(
        f"--prefill-mode layered cannot serve {type(model).__name__}: its layers cannot be run in ranges:"
        f" {why}; serve it in chunked mode"
    )


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
        self._grouped, stacks = _stages(model)
        if not self.can_cut(model):
            raise unfit(model, "SGLang has no pipeline parallelism for it")
        self.stack, (self._start, self._end) = stacks[0]
        stack, self._stack = self.stack, vars(self.stack)
        try:
            self._with_ends = boundaries.with_ends(stack)
        except NotImplementedError as why:
            raise unfit(model, str(why)) from why
        self._deepstack = Deepstack.of(stack)
        self._asks_behind_the_last = asks_behind_the_last(stack)
        self.first_layer = self._stack[self._start]
        self.num_layers: int = self._stack[self._end]
        self._asked = _asked_beside(self.stack)
        self._process_group = None if self._asked is None else self._asked[boundaries.PROCESS_GROUP]
        group = self._grouped[0]["pp_group"]
        self.has_head = group.is_last_rank
        self._stages = {
            (first, last): VirtualStage(group, is_first=first, is_last=last)
            for first in (False, True)
            for last in (False, True)
        }

    @staticmethod
    def can_cut(model: nn.Module) -> bool:
        """Whether the model has the pipeline interface; a multimodal one may keep it from its own callers.

        One whose bounds stand in two modules is none, where nobody looks at its numbers: Kimi-Linear's.
        """
        grouped, stacks = _stages(model)
        takes_rows = "pp_proxy_tensors" in inspect.signature(model.forward).parameters
        return takes_rows and bool(grouped) and len(stacks) == 1

    def _forward(
        self, batch: ForwardBatch, layers: LayerGroup, rows: PPProxyTensors | None, last: bool, kwargs: Kwargs
    ) -> Any:
        if self._asks_behind_the_last and rows is not None and layers.start == self.num_layers:
            rows = PPProxyTensors(rows.tensors | {CHOSEN: rows["hidden_states"]})  # anything: no layer runs
        with self._stage(layers.start, layers.end, first=rows is None, last=last):
            if self._deepstack is None:
                return self._model.forward(
                    batch.input_ids, batch.positions, batch, pp_proxy_tensors=rows, **kwargs
                )
            kwargs["pp_proxy_tensors"] = rows
            forward = partial(self._model.forward, batch.input_ids, batch.positions, batch, **kwargs)
            return self._deepstack.run(forward, layers.end, rows)

    @contextmanager
    def _stage(self, start: int, end: int, *, first: bool, last: bool) -> Iterator[None]:
        groups = [attributes["pp_group"] for attributes in self._grouped]
        bounds = (self._stack[self._start], self._stack[self._end])
        virtual = self._stages[first, last]
        ends = self._with_ends if start == self.num_layers else None
        try:
            if ends is not None:
                self._stack[ends[0]] = ends[1]
            # With no layers (start == end) the first stage still embeds, and the last one makes logits.
            self._stack[self._start], self._stack[self._end] = start, end
            for attributes in self._grouped:
                attributes["pp_group"] = virtual
            if self._asked is not None:
                self._asked[boundaries.PROCESS_GROUP] = boundaries.process_group(virtual)
            yield
        finally:
            if ends is not None:
                del self._stack[ends[0]]
            if self._asked is not None:
                self._asked[boundaries.PROCESS_GROUP] = self._process_group
            self._stack[self._start], self._stack[self._end] = bounds
            for attributes, group in zip(self._grouped, groups, strict=True):
                attributes["pp_group"] = group


def _stages(model: nn.Module) -> tuple[list[dict[str, Any]], list[tuple[nn.Module, tuple[str, str]]]]:
    """Attributes of the modules that know their pipeline group, and the modules that have layer bounds."""
    modules = list(model.modules())
    grouped = [vars(module) for module in modules if "pp_group" in vars(module)]
    bounded = [(module, names) for module in modules if (names := _bounds_of(vars(module)))]
    if boundaries.PROVES_STAGES:  # a wrapper has a copy of its stack's bounds (srt/models/kimi_linear.py)
        bounded = [(module, names) for module, names in bounded if has_layers(module)]
    return grouped, bounded


def has_layers(stack: nn.Module) -> bool:
    """Whether it has a list of modules of its own."""
    return any(isinstance(child, nn.ModuleList) for child in stack.children())


def _asked_beside(stack: nn.Module) -> Kwargs | None:
    """Where a stack finds the function by which it asks the process's group past its own, or None."""
    forward = inspect.unwrap(type(stack).forward)
    asks = boundaries.PROCESS_GROUP in forward.__code__.co_names
    return forward.__globals__ if asks and boundaries.PROCESS_GROUP in forward.__globals__ else None


def _bounds_of(attributes: Kwargs) -> tuple[str, str] | None:
    """What a module calls its first layer and the one after its last, if it has any."""
    return next((names for names in BOUNDS if attributes.keys() >= set(names)), None)


def prompt_kwargs(model_runner: Any, batch: ForwardBatch) -> Kwargs:
    """What the model's forward takes beside a prompt's tokens: embeddings that a client gave."""
    kwargs: Kwargs = model_runner._extend_forward_kwargs(batch, None)
    # SGLang leaves this key out for a model without pipeline stages, and LayerRanges gives it itself.
    kwargs.pop("pp_proxy_tensors", None)
    return kwargs


class LayerCalls:
    """The layers of one ModelRunner, range by range; rows are [rows of the batch, ...] a key."""

    def __init__(self, model_runner: Any, ranges: LayerRanges) -> None:
        self._model_runner = model_runner
        self.ranges = ranges
        self._adapters = Adapters.of(model_runner)
        self._run = self.ranges.run if self._adapters is None else partial(self._adapted, self._adapters)
        self.num_layers = self.ranges.num_layers  # where a pipeline stage ends, in the whole model's count

    def embed(self, batch: ForwardBatch) -> PPProxyTensors:
        """Prompt rows before layer 0; of images an encoder makes them."""
        rows: PPProxyTensors = self._run(batch, 0, 0, None, **prompt_kwargs(self._model_runner, batch))
        batch.mm_input_embeds = None  # SGLang's, for drafts, and as large as the rows: these have it now
        return rows

    def below(self, batch: ForwardBatch, end: int, rows: PPProxyTensors | None = None) -> PPProxyTensors:
        """Decode rows, from their tokens or from those of the stage before, through layers up to `end`."""
        return self._run(batch, self.ranges.first_layer, end, rows)

    def layers(self, batch: ForwardBatch, start: int, end: int, rows: PPProxyTensors) -> PPProxyTensors:
        """Rows through layers [start, end)."""
        return self._run(batch, start, end, rows)

    def head(self, batch: ForwardBatch, rows: PPProxyTensors, start: int) -> Any:
        """Rows through layers [start, num_layers) and, where the model ends there, to their logits."""
        has_head = self.ranges.has_head
        if start == self.num_layers and not has_head:
            return rows
        return self._run(batch, start, self.num_layers, rows, last=has_head)

    def _adapted(self, adapters: Adapters, batch: ForwardBatch, *args: Any, **kwargs: Any) -> Any:
        adapters.use(batch)
        return self.ranges.run(batch, *args, **kwargs)
