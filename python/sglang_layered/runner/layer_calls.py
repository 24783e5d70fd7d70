"""Calls of the model over layer ranges, in the caller's forward context."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from torch import nn

from sglang_layered.runner.layer_lists import ListRanges
from sglang_layered.runner.layer_ranges import LayerRanges, PipelineRanges


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
    can_be_cut = any({"start_layer", "end_layer"} <= vars(module).keys() for module in model.modules())
    return PipelineRanges(model) if can_be_cut else ListRanges(model)
