"""Attention of decode rows in CUDA graphs, and what of its plan serves outside of them.

Upstream: srt/layers/attention/base_attn_backend.py.
"""

from typing import Any, NamedTuple, Protocol

from sglang.srt.model_executor.forward_batch_info import ForwardBatch

from sglang_layered.upstream.releases import forwarding


class PlannedDecode(NamedTuple):
    """Decode rows and the backend that their attention is planned on; a batch may have padding rows."""

    backend: Any
    batch: ForwardBatch


class DecodeAttention(Protocol):
    """Plans attention of padded decode rows. `seq_len_fill` is the length that a padding row has."""

    backend: Any
    seq_len_fill: int

    def plan_capture(self, batch: ForwardBatch) -> None:
        """Before the recording of a batch size."""

    def plan(self, batch: ForwardBatch, view: Any) -> None:
        """Before replays: `batch` is the static one, `view` what SGLang gives its backends at a replay."""

    def planned(self, batch: ForwardBatch) -> PlannedDecode | None:
        """For attention outside of graphs with what was planned last, for this static batch; None: cannot."""

    def record(self, batch: ForwardBatch) -> None:
        """The part of planning that is recorded itself."""

    def after_warmup(self) -> None:
        """Between a warm-up run and the next run."""


class GraphAttention:
    """The backend's CUDA graph interface, on an instance of the backend for the layered graphs alone.

    Why not the stock decode graphs' instance, although both replay one after the other on one stream:
    FlashInfer keeps one wrapper a batch size, made anew by each capture, and the captured kernels read that
    wrapper's plan. A second capture at the same batch size would leave the stock graph with a plan that
    nobody refreshes. Triton could share (its buffers belong to the backend), but one rule for all backends is
    simpler and cannot break the stock graph. The price is a second set of index buffers.
    """

    def __init__(self, model_runner: Any, max_rows: int) -> None:
        self._model_runner = model_runner
        # Without a workspace of its own: the scratch memory is shared, its contents do not outlive a kernel.
        self.backend = model_runner._get_attention_backend()
        # SGLang stamps these two names on its own instance after making it; models ask for them.
        backend = model_runner.attn_backend
        self.backend.prefill_attention_backend_str = backend.prefill_attention_backend_str
        self.backend.decode_attention_backend_str = backend.decode_attention_backend_str
        self.backend.init_cuda_graph_state(max_rows, max_rows)
        self.seq_len_fill: int = self.backend.get_cuda_graph_seq_len_fill_value()
        self._plans: dict[int, Any] = {}

    def plan_capture(self, batch: ForwardBatch) -> None:
        """Make the batch size's metadata; the addresses are final from here on."""
        forwarding.plan_own_slots(self._model_runner, batch)
        self.backend.init_forward_metadata_out_graph(batch, in_capture=True)
        self._plans[batch.batch_size] = vars(self.backend).get("forward_metadata")

    def plan(self, batch: ForwardBatch, view: Any) -> None:
        """Refill the metadata in place."""
        self.backend.init_forward_metadata_out_graph(view)

    def planned(self, batch: ForwardBatch) -> PlannedDecode | None:
        """Some backends keep the plan of their last capture in sight, and refill that of another size."""
        plan = self._plans[batch.batch_size]
        if plan is None:  # backends inside this one have it
            return None
        self.backend.forward_metadata = plan
        return PlannedDecode(self.backend, batch)

    def record(self, batch: ForwardBatch) -> None:
        """Nothing for most backends."""
        self.backend.init_forward_metadata_in_graph(batch)

    def after_warmup(self) -> None:
        """Undo what a warm-up run changed."""
        self.backend.on_after_cuda_graph_warmup()
