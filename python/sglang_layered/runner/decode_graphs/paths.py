"""How a step's decode rows pass the layers outside of the group: by graphs where they can, else eagerly."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend

from sglang_layered.config import LayeredConfig
from sglang_layered.runner.decode_graphs.attention import GraphAttention
from sglang_layered.runner.decode_graphs.graphs import LayeredDecodeGraphs
from sglang_layered.runner.decode_graphs.recorder import CudaGraphRecorder
from sglang_layered.runner.decode_graphs.segments import BatchBuckets, LayerSegments
from sglang_layered.runner.layer_ranges import LayerCalls

logger = logging.getLogger(__name__)


class DecodePath(Protocol):
    """The decode rows of one step outside of the group; rows are the real ones, without padding."""

    def below(self, end: int) -> PPProxyTensors:
        """Rows after layers [0, end)."""

    def above(self, rows: PPProxyTensors, start: int) -> LogitsProcessorOutput:
        """Logits [rows, vocab] after layers [start, num_layers)."""


class EagerDecode:
    """Without graphs, in the caller's forward context."""

    def __init__(self, calls: LayerCalls, decode: ForwardBatch) -> None:
        self._calls = calls
        self._decode = decode

    def below(self, end: int) -> PPProxyTensors:
        """Rows after layers [0, end)."""
        return self._calls.below(self._decode, end)

    def above(self, rows: PPProxyTensors, start: int) -> LogitsProcessorOutput:
        """Logits [rows, vocab] after layers [start, num_layers)."""
        return self._calls.head(self._decode, rows, start)


class DecodePaths:
    """Chooses the path of each step's decode rows. `graphs` is None where SGLang itself has no decode graphs.

    When SGLang captures its decode graphs again (new weights), these are captured again at the next step.
    """

    def __init__(self, model_runner: Any, calls: LayerCalls) -> None:
        self._model_runner = model_runner
        self._calls = calls
        self._stock = model_runner.decode_cuda_graph_runner
        self.graphs = make_decode_graphs(model_runner, calls)

    def of(self, decode: ForwardBatch) -> DecodePath:
        """The path of these rows. Graphs take them here: the path is valid until the next call."""
        if self._model_runner.decode_cuda_graph_runner is not self._stock:
            self._stock = self._model_runner.decode_cuda_graph_runner
            self.graphs = make_decode_graphs(self._model_runner, self._calls)
        if self.graphs is not None and self.graphs.can_run(decode):
            return self.graphs.load(decode)
        return EagerDecode(self._calls, decode)


def make_decode_graphs(model_runner: Any, calls: LayerCalls) -> LayeredDecodeGraphs | None:
    """Capture layered decode graphs for the batch sizes of SGLang's own, or say in the log why not."""
    config = LayeredConfig.from_server_args(model_runner.server_args)
    granularity, stock = config.layered_graph_granularity, model_runner.decode_cuda_graph_runner
    if granularity == 0 or not config.may_fuse or not isinstance(stock, DecodeCudaGraphRunner):
        return None
    reason = obstacle(model_runner)
    if reason is not None:
        logger.warning("Layered steps run decode rows without CUDA graphs: %s", reason)
        return None
    buckets = BatchBuckets(tuple(stock.capture_bs), exact=stock.disable_padding)
    recorder = CudaGraphRecorder(model_runner)
    graphs = LayeredDecodeGraphs(
        calls,
        GraphAttention(model_runner, buckets.max_rows),
        recorder,
        LayerSegments(calls.num_layers, granularity),
        buckets,
        model_runner.device,
        lambda bucket: model_runner.graph_shared_output.get_logits_buffer(
            model_runner.model_config.vocab_size, rows=bucket
        ),
    )
    graphs.capture()
    return graphs


def obstacle(model_runner: Any) -> str | None:
    """What SGLang's decode graphs handle on this server and layered ones do not, or None."""
    stock = model_runner.decode_cuda_graph_runner
    obstacles = {
        "the decode graph backend is not 'full'": not isinstance(stock.backend, FullCudaGraphBackend),
        "the model has an encoder": stock.is_encoder_decoder,
        "rows are gathered between ranks (--moe-a2a-backend)": stock.require_gathered_buffer,
        "n-gram embeddings are on": stock.use_ngram_embedding,
        "the KV canary is on": model_runner.canary_manager is not None,
    }
    return next((reason for reason, applies in obstacles.items() if applies), None)
