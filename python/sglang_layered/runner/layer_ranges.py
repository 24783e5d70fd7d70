"""Any layer range [start, end) of an SGLang model, run as a virtual pipeline stage.

SGLang's models already run the layers between `start_layer` and `end_layer` and take and return
PPProxyTensors when the stage is not the first or the last. This is the one place that borrows that: it sets
the two numbers and stands in for the pipeline group while one range runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from torch import nn

from sglang_layered.core.plan import LayerGroup
from sglang_layered.errors import UnsupportedError

Kwargs: TypeAlias = dict[str, Any]


class LayerRanges(ABC):
    """The layers of one model, any range at a time."""

    num_layers: int

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
        stacks = [attributes for attributes in modules if {"start_layer", "end_layer"} <= attributes.keys()]
        if len(stacks) != 1 or not self._grouped:
            raise UnsupportedError(
                f"--prefill-mode layered cannot serve {type(model).__name__}: its layers cannot be run in"
                " ranges (SGLang has no pipeline parallelism for it); serve it in chunked mode"
            )
        self._stack = stacks[0]
        self.first_layer: int = self._stack["start_layer"]
        self.num_layers: int = self._stack["end_layer"]
        group = self._grouped[0]["pp_group"]
        self.has_head: bool = group.is_last_rank
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
        bounds = (self._stack["start_layer"], self._stack["end_layer"])
        virtual = self._stages[first, last]
        try:
            self._stack["start_layer"], self._stack["end_layer"] = start, end
            for attributes in self._grouped:
                attributes["pp_group"] = virtual
            yield
        finally:
            self._stack["start_layer"], self._stack["end_layer"] = bounds
            for attributes, group in zip(self._grouped, groups, strict=True):
                attributes["pp_group"] = group


class LayerCalls:
    """The model of one ModelRunner, range by range; rows are [rows of the batch, ...] a key.

    Raises:
        UnsupportedError: the model's layers cannot be run in ranges.
    """

    def __init__(self, model_runner: Any) -> None:
        self._model_runner = model_runner
        self._ranges = _ranges_of(model_runner.model)
        self.num_layers = self._ranges.num_layers

    def embed(self, batch: ForwardBatch) -> PPProxyTensors:
        """Prompt rows before layer 0."""
        kwargs = self._model_runner._extend_forward_kwargs(batch, None)
        kwargs.pop("pp_proxy_tensors", None)
        return self._ranges.run(batch, 0, 0, None, **kwargs)

    def below(self, batch: ForwardBatch, end: int) -> PPProxyTensors:
        """Decode rows from their tokens through layers [0, end)."""
        return self._ranges.run(batch, 0, end, None)

    def layers(self, batch: ForwardBatch, start: int, end: int, rows: PPProxyTensors) -> PPProxyTensors:
        """Rows through layers [start, end)."""
        return self._ranges.run(batch, start, end, rows)

    def head(self, batch: ForwardBatch, rows: PPProxyTensors, start: int) -> LogitsProcessorOutput:
        """Rows through layers [start, num_layers) to their logits."""
        return self._ranges.run(batch, start, self.num_layers, rows, last=True)


def _ranges_of(model: nn.Module) -> LayerRanges:
    from sglang_layered.runner.layer_lists import ListRanges  # which begins with a class of this module

    can_be_cut = any({"start_layer", "end_layer"} <= vars(module).keys() for module in model.modules())
    return PipelineRanges(model) if can_be_cut else ListRanges(model)
