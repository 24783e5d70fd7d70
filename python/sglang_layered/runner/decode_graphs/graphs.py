"""CUDA graphs of layer ranges for decode rows: recorded once a batch size, replayed for any cut."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors

from sglang_layered.core.plan import LayerGroup
from sglang_layered.runner.decode_graphs.segments import (
    BatchBuckets,
    LayerSegments,
)
from sglang_layered.runner.rows import keep_rows
from sglang_layered.upstream.graph_attention import DecodeAttention, PlannedDecode
from sglang_layered.upstream.graphs import (
    DecodeInputs,
    GraphRecorder,
    StaticRows,
)
from sglang_layered.upstream.models import LayerCalls, attend

PROLOGUE, EPILOGUE = "prologue", "epilogue"


@dataclass(frozen=True, slots=True)
class CaptureCost:
    """What capturing took: memory in GiB, time in seconds."""

    gib: float
    seconds: float


class LayeredDecodeGraphs:
    """One graph a run of segments, and two more: tokens to rows before layer 0, the last rows to logits.

    They hand rows on through static tensors outside of the graphs' pool, so any graph may follow any other.
    `logits_buffer` gives the place of a bucket's logits [bucket, vocab], or None to keep them in the pool.
    """

    def __init__(
        self,
        calls: LayerCalls,
        attention: DecodeAttention,
        recorder: GraphRecorder,
        segments: LayerSegments,
        buckets: BatchBuckets,
        device: Any,
        logits_buffer: Callable[[int], torch.Tensor | None],
    ) -> None:
        self.calls = calls
        self._attention = attention
        self.recorder = recorder
        self.segments = segments
        self.buckets = buckets
        self._inputs = DecodeInputs(device, buckets.max_rows, attention.seq_len_fill)
        self._logits_buffer = logits_buffer
        self._batches: dict[int, ForwardBatch] = {}
        self.rows = StaticRows(())
        self.cost = CaptureCost(0.0, 0.0)

    @property
    def num_graphs(self) -> int:
        """Graphs of all batch sizes."""
        return len(self.buckets.sizes) * self.segments.num_graphs

    def capture(self) -> None:
        """Record everything and note its cost; largest batch size first, so that others reuse its memory."""
        began, free = time.perf_counter(), self.recorder.free_gib()
        with self.recorder.session():
            for bucket in reversed(self.buckets.sizes):
                self._capture_bucket(bucket)
        self.rows.clear()
        self.cost = CaptureCost(free - self.recorder.free_gib(), time.perf_counter() - began)

    def can_run(self, decode: ForwardBatch) -> bool:
        """Whether graphs hold these decode rows; the others run eagerly, as with stock decode graphs."""
        return (
            decode.forward_mode.is_decode()
            and self.buckets.bucket_for(decode.batch_size) is not None
            and decode.input_ids.shape[0] == decode.batch_size
            and decode.replace_embeds is None
            and decode.spec_info is None
            and decode.encoder_lens is None
            and not (decode.capture_hidden_mode and decode.capture_hidden_mode.need_capture())
        )

    def load(self, decode: ForwardBatch) -> "GraphedDecode":
        """Take these rows, padded to their bucket, and plan their attention. Valid until the next load."""
        bucket = self.buckets.bucket_for(decode.batch_size)
        if bucket is None:
            raise AssertionError(f"{decode.batch_size} rows fit none of {self.buckets.sizes}")
        view = self._inputs.fill(decode, bucket)
        self._attention.plan(self._batches[bucket], view)
        return GraphedDecode(self, decode, bucket)

    def planned(self, bucket: int) -> PlannedDecode | None:
        """What attends outside of graphs for the rows that were loaded last, with their padding."""
        return self._attention.planned(self._batches[bucket])

    def _capture_bucket(self, bucket: int) -> None:
        batch = self._inputs.batch(bucket, self._logits_buffer(bucket))
        self._batches[bucket] = batch
        with attend(self._attention.backend, batch):
            self._attention.plan_capture(batch)
            if not self.rows.keys:
                self.rows = StaticRows(self._warm_up(batch))
        self._record(bucket, PROLOGUE, partial(self._prologue, batch))
        for run in self.segments.runs:
            self._record(bucket, run, partial(self._run, batch, run))
        self._record(bucket, EPILOGUE, partial(self._epilogue, batch))

    def _record(self, bucket: int, name: str | range, call: Callable[[], Any]) -> None:
        def run() -> Any:
            with attend(self._attention.backend, self._batches[bucket]):
                return call()

        self.recorder.record((bucket, name), run, self._attention.after_warmup)

    def _warm_up(self, batch: ForwardBatch) -> list[PPProxyTensors]:
        """The rows at every segment's edge, to learn which keys there are."""
        self._attention.record(batch)
        edges = [self.calls.below(batch, 0)]
        for index in range(self.segments.num_segments):
            bounds = self.segments.cut(index), self.segments.cut(index + 1)
            edges.append(self.calls.layers(batch, *bounds, keep_rows(edges[-1], torch.Tensor.clone)))
        return edges

    def _prologue(self, batch: ForwardBatch) -> None:
        self._attention.record(batch)
        self.rows.put(0, self.calls.below(batch, 0).tensors)

    def _run(self, batch: ForwardBatch, run: range) -> None:
        rows = self.rows.at(run.start, batch.batch_size)
        self.rows.put(run.stop, self.calls.layers(batch, *self.segments.layers(run), rows).tensors)

    def _epilogue(self, batch: ForwardBatch) -> LogitsProcessorOutput:
        rows = self.rows.at(self.segments.num_segments, batch.batch_size)
        return self.calls.head(batch, rows, self.segments.num_layers)


class GraphedDecode:
    """The decode rows of one step, by graphs.

    Layers between a cut and its segment's edge run eagerly on the real rows, in the caller's forward context:
    the decode attention that the hybrid layers use must be planned there.
    """

    def __init__(self, graphs: LayeredDecodeGraphs, decode: ForwardBatch, bucket: int) -> None:
        self._graphs = graphs
        self._decode = decode
        self._bucket = bucket

    def below(self, end: int) -> PPProxyTensors:
        """The real rows after layers [0, end): views of the static rows where the cut is a segment's edge."""
        cover = self._graphs.segments.cover(0, end)
        self._replay(PROLOGUE)
        for run in cover.runs:
            self._replay(run)
        rows = self._graphs.rows.at(cover.runs[-1].stop if cover.runs else 0, self._decode.batch_size)
        return self._eager(cover.tail, rows)

    def above(self, rows: PPProxyTensors, start: int) -> LogitsProcessorOutput:
        """Logits [rows, vocab] of the real rows after layers [start, num_layers)."""
        cover = self._graphs.segments.cover(start, self._graphs.segments.num_layers)
        last = self._graphs.segments.num_segments
        self._graphs.rows.put(
            cover.runs[0].start if cover.runs else last, self._eager(cover.head, rows).tensors
        )
        for run in cover.runs:
            self._replay(run)
        output = self._replay(EPILOGUE)
        return LogitsProcessorOutput(next_token_logits=output.next_token_logits[: self._decode.batch_size])

    def planned(self, group: LayerGroup) -> PlannedDecode | None:
        """What attends for these rows in a group, with their padding.

        It is ready when `below` has run: some backends make a part of their plan in a graph. None where
        layers beside the group run eagerly: the real rows have a plan of their own then.
        """
        segments = self._graphs.segments
        if segments.cover(0, group.start).tail or segments.cover(group.end, segments.num_layers).head:
            return None
        return self._graphs.planned(self._bucket)

    def _replay(self, name: str | range) -> Any:
        """The prologue, the epilogue or a run of segments."""
        return self._graphs.recorder.replay((self._bucket, name))

    def _eager(self, layers: range, rows: PPProxyTensors) -> PPProxyTensors:
        if not layers:
            return rows
        return self._graphs.calls.layers(self._decode, layers.start, layers.stop, rows)
