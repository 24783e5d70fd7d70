"""How a step's decode rows pass the layers outside of the group: by graphs where they can, else eagerly."""

import logging
from functools import partial
from typing import Any

from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors

from sglang_layered.config import LayeredConfig
from sglang_layered.core.plan import LayerGroup
from sglang_layered.runner.decode_graphs.graphs import GraphedDecode, LayeredDecodeGraphs
from sglang_layered.runner.decode_graphs.segments import (
    MOST_GRAPHS,
    BatchBuckets,
    to_capture,
)
from sglang_layered.upstream.graph_attention import GraphAttention
from sglang_layered.upstream.graphs import (
    CudaGraphRecorder,
    logits_buffer,
    obstacle,
    slower_than_stock,
    stock_buckets,
)
from sglang_layered.upstream.memory import note_graphs
from sglang_layered.upstream.models import LayerCalls

logger = logging.getLogger(__name__)


class EagerDecode:
    """Without graphs, in the caller's forward context."""

    def __init__(self, calls: LayerCalls, decode: ForwardBatch) -> None:
        self._calls = calls
        self._decode = decode

    def below(self, end: int) -> PPProxyTensors:
        """Rows after layers [0, end)."""
        return self._calls.below(self._decode, end)

    def planned(self, group: LayerGroup) -> None:
        """Nothing is planned here."""

    def above(self, rows: PPProxyTensors, start: int) -> LogitsProcessorOutput:
        """Logits [rows, vocab] after layers [start, num_layers)."""
        return self._calls.head(self._decode, rows, start)


class DecodePaths:
    """Chooses the path of each step's decode rows. `graphs` is None where SGLang itself has no decode graphs.

    SGLang captures its decode graphs again for new weights; then these are stale, and `renew` is due.
    """

    def __init__(self, model_runner: Any, calls: LayerCalls) -> None:
        self._model_runner = model_runner
        self._calls = calls
        self.stock = model_runner.decode_cuda_graph_runner
        self.graphs = make_decode_graphs(model_runner, calls)

    def renew(self) -> None:
        """Capture again, where SGLang's graphs are no longer `stock`."""
        self.stock = self._model_runner.decode_cuda_graph_runner
        self.graphs = None  # its memory is free before new graphs take theirs
        self.graphs = make_decode_graphs(self._model_runner, self._calls)

    def of(self, decode: ForwardBatch) -> EagerDecode | GraphedDecode:
        """The path of these rows. Graphs take them here: the path is valid until the next call."""
        if self.graphs is not None and self.graphs.can_run(decode):
            return self.graphs.load(decode)
        return EagerDecode(self._calls, decode)


def make_decode_graphs(model_runner: Any, calls: LayerCalls) -> LayeredDecodeGraphs | None:
    """Capture layered decode graphs for batch sizes of SGLang's own; the log says how many, or why none."""
    config = LayeredConfig.from_server_args(model_runner.server_args)
    granularity, stock = config.layered_graph_granularity, stock_buckets(model_runner)
    unneeded = {
        "--layered-graph-granularity 0": granularity == 0,
        "--speculative-algorithm replays SGLang's own": not model_runner.spec_algorithm.is_none(),
        f"--layered-execution {config.layered_execution} replays SGLang's own": not config.may_fuse,
        "SGLang captures none": stock is None,
    }
    if stock is None or any(unneeded.values()):
        logger.info("Layered decode graphs: none, %s", next(why for why, holds in unneeded.items() if holds))
        return None
    reason = obstacle(model_runner)
    if reason is not None:
        logger.warning("Layered steps run decode rows without CUDA graphs: %s", reason)
        return None
    segments, buckets = to_capture(calls.num_layers, granularity, stock)
    graphs = LayeredDecodeGraphs(
        calls,
        GraphAttention(model_runner, buckets.max_rows),
        CudaGraphRecorder(model_runner),
        segments,
        buckets,
        model_runner.device,
        partial(logits_buffer, model_runner),
    )
    graphs.capture()
    note_graphs(model_runner, graphs.cost.gib, graphs.cost.seconds)
    _log_captured(graphs, stock, granularity)
    for what, has_stock in slower_than_stock(model_runner).items():
        if has_stock:
            logger.warning("In a layered step %s", what)
    return graphs


def _log_captured(graphs: LayeredDecodeGraphs, stock: BatchBuckets, granularity: int | None) -> None:
    """Say how many graphs there are, why so many, and what they cost."""
    logger.info(
        "Layered decode graphs: %d, %d at each of %d of SGLang's %d batch sizes, up to %d rows; the shortest"
        " have %d layers (%s), %.2f GiB, %.1f s",
        graphs.num_graphs,
        graphs.segments.num_graphs,
        len(graphs.buckets.sizes),
        len(stock.sizes),
        graphs.buckets.max_rows,
        graphs.segments.granularity,
        f"as few as {MOST_GRAPHS} graphs allow" if granularity is None else "--layered-graph-granularity",
        graphs.cost.gib,
        graphs.cost.seconds,
    )
