"""Prompt and decode rows through a group's layers by CUDA graphs, a graph a layer that breaks at attention.

Any group is covered, for any cut. Rows are padded to one of a few sizes (`--layered-graph-group-rows`). A
step that fits none of them, or would be padded to more than twice its rows, runs eagerly.
"""

import logging
import time
from functools import partial
from typing import Any

from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors

from sglang_layered.config import LayeredConfig
from sglang_layered.core.plan import LayerGroup
from sglang_layered.errors import UnsupportedError
from sglang_layered.runner.decode_graphs.graphs import CaptureCost
from sglang_layered.runner.decode_graphs.segments import BatchBuckets
from sglang_layered.runner.rows import num_rows_of
from sglang_layered.upstream.graph_attention import PlannedDecode
from sglang_layered.upstream.graphs import GraphRecorder, StaticRows
from sglang_layered.upstream.group_graphs import (
    BreakableRecorder,
    BreakingAttention,
    GroupInputs,
    group_obstacle,
)
from sglang_layered.upstream.memory import note_graphs
from sglang_layered.upstream.models import LayerCalls, attend
from sglang_layered.upstream.runner import HybridAttention

logger = logging.getLogger(__name__)

MOST_PADDED = 2  # times its rows, as SGLang pads prompts in its own graphs


class GroupGraphs:
    """A graph a layer and size. They hand rows on through static tensors outside of the graphs' pool.

    The rows that `run` gives are views of these tensors, so a prompt's rows stay there between its groups and
    need no copy. A cohort that is overtaken takes its rows out of there (`Overtaking`). `loaded` is the batch
    whose rows were put there last, `decode_room` the rows from its first decode row to the last of padding.
    """

    def __init__(
        self,
        calls: LayerCalls,
        attention: BreakingAttention,
        recorder: GraphRecorder,
        sizes: BatchBuckets,
        device: Any,
    ) -> None:
        self._calls = calls
        self._attention = attention
        self._recorder = recorder
        self.sizes = sizes
        self._inputs = GroupInputs(device, sizes.max_rows)
        self.rows = StaticRows(())
        self.loaded: ForwardBatch | None = None
        self.decode_room = 0
        self._num_rows = self._size = 0
        self._batches: dict[int, ForwardBatch] = {}
        self.cost = CaptureCost(0.0, 0.0)

    @property
    def num_graphs(self) -> int:
        """CUDA graphs of all layers and sizes: a layer's is one before attention and one behind it."""
        return 2 * len(self.sizes.sizes) * self._calls.num_layers

    def capture(self) -> None:
        """Record every layer and note the cost; largest size first, so that others reuse its memory.

        Raises:
            UnsupportedError: a layer does not attend once.
        """
        began, free = time.perf_counter(), self._recorder.free_gib()
        with self._recorder.session():
            self.rows = StaticRows(self._warm_up(), self.sizes.max_rows)
            for size in reversed(self.sizes.sizes):
                batch = self._batches[size] = self._inputs.batch(size)
                for layer in range(self._calls.num_layers):
                    self._recorder.record((size, layer), partial(self._layer, batch, layer), lambda: None)
        self.rows.clear()
        self.cost = CaptureCost(free - self._recorder.free_gib(), time.perf_counter() - began)

    def load(self, prompt: ForwardBatch, decode: ForwardBatch) -> ForwardBatch | None:
        """The batch of a group's layers, its rows in the graphs' memory; None where no graph holds so many.

        Of its requests it says only how many there are.
        """
        num_prompt_rows, num_decode_rows = num_rows_of(prompt, decode)
        num_rows = num_prompt_rows + num_decode_rows
        size = self.sizes.bucket_for(num_rows)
        if size is None or size > MOST_PADDED * num_rows:
            return None
        self._inputs.fill(prompt, decode, num_rows)
        self._num_rows, self._size, self.decode_room = num_rows, size, size - num_prompt_rows
        rows = self.loaded = object.__new__(ForwardBatch)
        vars(rows).update(vars(self._batches[size]), batch_size=prompt.batch_size + decode.batch_size)
        return rows

    def run(
        self,
        group: LayerGroup,
        batch: ForwardBatch,
        planned: PlannedDecode,
        prompt: PPProxyTensors,
        decode: PPProxyTensors,
    ) -> tuple[PPProxyTensors, PPProxyTensors]:
        """The prompt's rows and the decode rows after a group's layers.

        `batch` is the prompt's. What is planned for the decode rows has `decode_room` rows at most.
        """
        cut, num_rows, size = self._size - self.decode_room, self._num_rows, self._size
        self._join(group.start, prompt, decode)
        self._attention.serve(batch, planned, (cut, num_rows, size))
        for layer in range(group.start, group.end):
            self._recorder.replay((size, layer))
        return self.rows.at(group.end, cut), self.rows.at(group.end, num_rows, first=cut)

    def _join(self, cut: int, prompt: PPProxyTensors, decode: PPProxyTensors) -> None:
        num_rows, size = self._num_rows, self._size
        for key, is_there in self.rows.keys[cut].items():
            if not is_there:
                continue
            home, first, rest = self.rows.tensors[key], prompt.tensors[key], decode.tensors[key]
            cut_at = first.shape[0]
            if first.data_ptr() != home.data_ptr():  # else they stayed there since the group before
                home[:cut_at].copy_(first)
            home[cut_at:num_rows].copy_(rest)
            if num_rows < size:
                home[num_rows:size].zero_()

    def _layer(self, batch: ForwardBatch, layer: int) -> None:
        rows = self.rows.at(layer, batch.batch_size)
        with attend(self._attention, batch):
            self.rows.put(layer + 1, self._calls.layers(batch, layer, layer + 1, rows).tensors)

    def _warm_up(self) -> list[PPProxyTensors]:
        """One row at every layer's edge, to learn which keys there are."""
        batch = self._inputs.batch(1)
        edges = [self._calls.below(batch, 0)]
        for layer in range(self._calls.num_layers):
            before = self._attention.num_breaks
            copies = {k: None if t is None else t.clone() for k, t in edges[-1].tensors.items()}
            with attend(self._attention, batch):
                edges.append(self._calls.layers(batch, layer, layer + 1, PPProxyTensors(copies)))
            if self._attention.num_breaks != before + 1:
                raise UnsupportedError(
                    f"--layered-graph-group-rows: layer {layer} attends {self._attention.num_breaks - before}"
                    " times where graphs break, and must once; leave the flag out"
                )
        return edges


def make_group_graphs(model_runner: Any, calls: LayerCalls, attention: HybridAttention) -> GroupGraphs | None:
    """Capture graphs of a group's layers where they are asked for; the log says how many, or why none."""
    config = LayeredConfig.from_server_args(model_runner.server_args)
    if not config.layered_graph_group_rows:
        return None
    reason = group_obstacle(model_runner, calls.ranges)
    if reason is not None:
        logger.warning("--layered-graph-group-rows: a group's layers run without CUDA graphs, %s", reason)
        return None
    sizes = BatchBuckets(tuple(sorted(config.layered_graph_group_rows)))
    breaking = BreakingAttention(attention, sizes.max_rows)
    graphs = GroupGraphs(calls, breaking, BreakableRecorder(model_runner), sizes, model_runner.device)
    graphs.capture()
    note_graphs(model_runner, graphs.cost.gib, graphs.cost.seconds, "layered_group")
    logger.info(
        "Layered group graphs: %d, 2 a layer at %s rows, %.2f GiB, %.1f s",
        graphs.num_graphs,
        ", ".join(map(str, sizes.sizes)),
        graphs.cost.gib,
        graphs.cost.seconds,
    )
    return graphs
