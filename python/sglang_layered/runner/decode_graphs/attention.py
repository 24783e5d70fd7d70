"""Attention of captured decode rows: an instance of SGLang's backend for the layered graphs alone.

Why not the stock decode graphs' instance, although both replay one after the other on one stream: FlashInfer
keeps one wrapper a batch size, made anew by each capture, and the captured kernels read that wrapper's plan.
A second capture at the same batch size would leave the stock graph with a plan that nobody refreshes. Triton
could share (its buffers belong to the backend), but one rule for all backends is simpler and cannot break the
stock graph. The price is a second set of index buffers; the scratch workspace is shared, because its contents
do not outlive a kernel.
"""

from __future__ import annotations

from typing import Any, Protocol

from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class DecodeAttention(Protocol):
    """Plans attention of padded decode rows. `seq_len_fill` is the length that a padding row has."""

    backend: Any
    seq_len_fill: int

    def plan_capture(self, batch: ForwardBatch) -> None:
        """Before the recording of a batch size."""

    def plan(self, batch: ForwardBatch, view: Any) -> None:
        """Before replays: `batch` is the static one, `view` what SGLang gives its backends at a replay."""

    def record(self, batch: ForwardBatch) -> None:
        """The part of planning that is recorded itself."""

    def after_warmup(self) -> None:
        """Between a warm-up run and the next run."""


class GraphAttention:
    """The backend's CUDA graph interface. Upstream: srt/layers/attention/base_attn_backend.py."""

    def __init__(self, model_runner: Any, max_rows: int) -> None:
        stock = model_runner.attn_backend
        self.backend = model_runner._get_attention_backend()
        self.backend.prefill_attention_backend_str = stock.prefill_attention_backend_str
        self.backend.decode_attention_backend_str = stock.decode_attention_backend_str
        self.backend.init_cuda_graph_state(max_rows, max_rows)
        self.seq_len_fill: int = self.backend.get_cuda_graph_seq_len_fill_value()

    def plan_capture(self, batch: ForwardBatch) -> None:
        """Make the batch size's metadata; the addresses are final from here on."""
        self.backend.init_forward_metadata_out_graph(batch, in_capture=True)

    def plan(self, batch: ForwardBatch, view: Any) -> None:
        """Refill the metadata in place."""
        self.backend.init_forward_metadata_out_graph(view)

    def record(self, batch: ForwardBatch) -> None:
        """Nothing for most backends."""
        self.backend.init_forward_metadata_in_graph(batch)

    def after_warmup(self) -> None:
        """Undo what a warm-up run changed."""
        self.backend.on_after_cuda_graph_warmup()
