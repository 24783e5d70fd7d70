"""Decode graphs over layer ranges: recorded once a batch size, replayed for any cut."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from sglang_layered.runner.decode_graphs.attention import DecodeAttention
from sglang_layered.runner.decode_graphs.buffers import DecodeInputs, StaticRows
from sglang_layered.runner.decode_graphs.recorder import GraphRecorder
from sglang_layered.runner.decode_graphs.segments import BatchBuckets, LayerSegments
from sglang_layered.runner.layer_ranges import LayerCalls

logger = logging.getLogger(__name__)

PROLOGUE, EPILOGUE = "prologue", "epilogue"


class LayeredDecodeGraphs:
    """One graph a base segment, and two more: tokens to rows before layer 0, rows after the last to logits.

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
        self._calls = calls
        self._attention = attention
        self._recorder = recorder
        self.segments = segments
        self.buckets = buckets
        self._inputs = DecodeInputs(device, buckets.max_rows, attention.seq_len_fill)
        self._logits_buffer = logits_buffer
        self._batches: dict[int, ForwardBatch] = {}
        self._rows = StaticRows(())

    def capture(self) -> None:
        """Record everything and log its cost; largest batch size first, so that others reuse its memory."""
        began, free = time.perf_counter(), self._recorder.free_gib()
        with self._recorder.session():
            for bucket in reversed(self.buckets.sizes):
                self._capture_bucket(bucket)
        self._rows.clear()
        logger.info(
            "Layered decode graphs: %d batch sizes up to %d rows, %d segments of %d layers, %.2f GiB, %.1f s",
            len(self.buckets.sizes),
            self.buckets.max_rows,
            self.segments.num_segments,
            self.segments.granularity,
            free - self._recorder.free_gib(),
            time.perf_counter() - began,
        )

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

    def load(self, decode: ForwardBatch) -> GraphedDecode:
        """Take these rows, padded to their bucket, and plan their attention. Valid until the next load."""
        bucket = self.buckets.bucket_for(decode.batch_size)
        if bucket is None:
            raise AssertionError(f"{decode.batch_size} rows fit none of {self.buckets.sizes}")
        view = self._inputs.fill(decode, bucket)
        self._attention.plan(self._batches[bucket], view)
        return GraphedDecode(self, self._calls, decode, bucket)

    def replay(self, bucket: int, name: str | int) -> Any:
        """Replay the prologue, the epilogue or the segment of this index."""
        return self._recorder.replay((bucket, name))

    def rows_at(self, index: int, num_rows: int) -> PPProxyTensors:
        """Views of the static rows before segment `index`."""
        return self._rows.at(index, num_rows)

    def put_rows(self, index: int, rows: PPProxyTensors) -> None:
        """Copy rows in, as the input of segment `index`."""
        self._rows.put(index, rows.tensors)

    def _capture_bucket(self, bucket: int) -> None:
        batch = self._inputs.batch(bucket, self._logits_buffer(bucket))
        self._batches[bucket] = batch
        with self._attending():
            self._attention.plan_capture(batch)
            if not self._rows.keys:
                self._rows = StaticRows(self._warm_up(batch))
        self._record(bucket, PROLOGUE, partial(self._prologue, batch))
        for index in range(self.segments.num_segments):
            self._record(bucket, index, partial(self._segment, batch, index))
        self._record(bucket, EPILOGUE, partial(self._epilogue, batch))

    def _record(self, bucket: int, name: str | int, call: Callable[[], Any]) -> None:
        def run() -> Any:
            with self._attending():
                return call()

        self._recorder.record((bucket, name), run, self._attention.after_warmup)

    def _warm_up(self, batch: ForwardBatch) -> list[PPProxyTensors]:
        """The rows at every segment's edge, to learn which keys there are."""
        self._attention.record(batch)
        edges = [self._calls.below(batch, 0)]
        for index in range(self.segments.num_segments):
            rows = PPProxyTensors(
                {key: None if value is None else value.clone() for key, value in edges[-1].tensors.items()}
            )
            bounds = self.segments.cut(index), self.segments.cut(index + 1)
            edges.append(self._calls.layers(batch, *bounds, rows))
        return edges

    def _prologue(self, batch: ForwardBatch) -> None:
        self._attention.record(batch)
        self._rows.put(0, self._calls.below(batch, 0).tensors)

    def _segment(self, batch: ForwardBatch, index: int) -> None:
        rows = self._rows.at(index, batch.batch_size)
        bounds = self.segments.cut(index), self.segments.cut(index + 1)
        self._rows.put(index + 1, self._calls.layers(batch, *bounds, rows).tensors)

    def _epilogue(self, batch: ForwardBatch) -> LogitsProcessorOutput:
        rows = self._rows.at(self.segments.num_segments, batch.batch_size)
        return self._calls.head(batch, rows, self.segments.num_layers)

    def _attending(self) -> Any:
        return forward_context(ForwardContext(attn_backend=self._attention.backend))


class GraphedDecode:
    """The decode rows of one step, by graphs.

    Layers between a cut and its segment's edge run eagerly on the real rows, in the caller's forward context:
    the decode attention that the hybrid layers use must be planned there.
    """

    def __init__(
        self, graphs: LayeredDecodeGraphs, calls: LayerCalls, decode: ForwardBatch, bucket: int
    ) -> None:
        self._graphs = graphs
        self._calls = calls
        self._decode = decode
        self._bucket = bucket

    def below(self, end: int) -> PPProxyTensors:
        """The real rows after layers [0, end): views of the static rows where the cut is a segment's edge."""
        cover = self._graphs.segments.cover(0, end)
        self._graphs.replay(self._bucket, PROLOGUE)
        for index in cover.segments:
            self._graphs.replay(self._bucket, index)
        rows = self._graphs.rows_at(cover.segments.stop, self._decode.batch_size)
        return self._eager(cover.tail, rows)

    def above(self, rows: PPProxyTensors, start: int) -> LogitsProcessorOutput:
        """Logits [rows, vocab] of the real rows after layers [start, num_layers)."""
        cover = self._graphs.segments.cover(start, self._graphs.segments.num_layers)
        self._graphs.put_rows(cover.segments.start, self._eager(cover.head, rows))
        for index in cover.segments:
            self._graphs.replay(self._bucket, index)
        output = self._graphs.replay(self._bucket, EPILOGUE)
        return LogitsProcessorOutput(next_token_logits=output.next_token_logits[: self._decode.batch_size])

    def _eager(self, layers: range, rows: PPProxyTensors) -> PPProxyTensors:
        if not layers:
            return rows
        return self._calls.layers(self._decode, layers.start, layers.stop, rows)
