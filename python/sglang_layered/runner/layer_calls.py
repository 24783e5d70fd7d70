"""Calls of the model over layer ranges, in the caller's forward context."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors

from sglang_layered.runner.layer_ranges import LayerRanges


class LayerCalls:
    """The model of one ModelRunner, range by range; rows are [rows of the batch, ...] a key.

    Raises:
        UnsupportedError: the model's layers cannot be run in ranges.
    """

    def __init__(self, model_runner: Any) -> None:
        self._model_runner = model_runner
        self._ranges = LayerRanges(model_runner.model)
        self.num_layers = self._ranges.num_layers

    def embed(self, batch: ForwardBatch) -> PPProxyTensors:
        """Prompt rows before layer 0."""
        kwargs = self._model_runner._extend_forward_kwargs(batch, None)
        with self._ranges.stage(0, 0, first=True, last=False):
            return self._model_runner.model.forward(batch.input_ids, batch.positions, batch, **kwargs)

    def below(self, batch: ForwardBatch, end: int) -> PPProxyTensors:
        """Decode rows from their tokens through layers [0, end)."""
        with self._ranges.stage(0, end, first=True, last=False):
            return self._call(batch, None)

    def layers(self, batch: ForwardBatch, start: int, end: int, rows: PPProxyTensors) -> PPProxyTensors:
        """Rows through layers [start, end)."""
        with self._ranges.stage(start, end, first=False, last=False):
            return self._call(batch, rows)

    def head(self, batch: ForwardBatch, rows: PPProxyTensors, start: int) -> LogitsProcessorOutput:
        """Rows through layers [start, num_layers) to their logits."""
        with self._ranges.stage(start, self.num_layers, first=False, last=True):
            return self._call(batch, rows)

    def _call(self, batch: ForwardBatch, rows: PPProxyTensors | None) -> Any:
        return self._model_runner.model.forward(
            batch.input_ids, batch.positions, batch, pp_proxy_tensors=rows
        )
