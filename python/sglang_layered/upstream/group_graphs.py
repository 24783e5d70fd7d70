"""Graphs of single layers for a group's rows, by SGLang's breakable CUDA graphs.

Such a graph ends where a layer attends and goes on behind it. Attention runs there as in a step without
graphs: planned for the real rows, of any number of requests. Upstream:
srt/model_executor/runner_backend/breakable_cuda_graph_backend.py, srt/layers/radix_attention.py.
"""

import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from sglang.srt.distributed.parallel_state import graph_capture
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.runner.base_cuda_graph_runner import freeze_gc
from sglang.srt.model_executor.runner.shape_key import ShapeKey
from sglang.srt.model_executor.runner_backend.breakable_cuda_graph_backend import BreakableCudaGraphBackend
from sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph.breakable_cuda_graph import (
    eager_on_graph,
)

from sglang_layered.errors import UnsupportedError
from sglang_layered.upstream.graph_attention import PlannedDecode
from sglang_layered.upstream.graphs import CudaGraphRecorder, obstacle, stock_buckets
from sglang_layered.upstream.models import LayerRanges, PipelineRanges
from sglang_layered.upstream.releases import arguments, forwarding
from sglang_layered.upstream.runner import HEAD_ARGUMENTS, HybridAttention

ROWS = ("input_ids", "positions", "out_cache_loc")


class GroupInputs:
    """What layers read of a batch beside attention: one value a row, at most `max_rows` rows.

    A padding row writes KV slot 0, which SGLang gives to no request.
    """

    def __init__(self, device: Any, max_rows: int) -> None:
        self._rows = {name: torch.zeros(max_rows, dtype=torch.int64, device=device) for name in ROWS}
        self._num_filled = 0
        self._prompt: Callable[[], ForwardBatch | None] = lambda: None

    def batch(self, num_rows: int) -> ForwardBatch:
        """The static batch of so many rows.

        Of requests it says nothing: a layer that asks for more than its rows fails while it is captured, and
        not silently afterwards.
        """
        nothing: Any = None
        rows = {name: tensor[:num_rows] for name, tensor in self._rows.items()}
        return ForwardBatch(
            forward_mode=ForwardMode.MIXED,
            batch_size=num_rows,
            req_pool_indices=nothing,
            seq_lens=nothing,
            seq_lens_sum=nothing,
            **rows,
        )

    def fill(self, prompt: ForwardBatch, decode: ForwardBatch, num_rows: int) -> None:
        """Copy a step's rows in, a prompt's before its first group; all behind them is padding."""
        cut, is_new, stale = prompt.input_ids.shape[0], self._prompt() is not prompt, self._num_filled
        for name, tensor in self._rows.items():
            if is_new:
                tensor[:cut].copy_(getattr(prompt, name))
            tensor[cut:num_rows].copy_(getattr(decode, name))
            if num_rows < stale:
                tensor[num_rows:stale].zero_()
        self._prompt, self._num_filled = weakref.ref(prompt), num_rows


class BreakingAttention(HybridAttention):
    """What layers attend with while they are captured: the graph ends, and in a replay `attention` attends.

    Its output lies in one memory for all layers. Rows behind the real ones are zeros there, so that padding
    rows stay finite, whatever they have passed through before.

    Raises:
        UnsupportedError: a layer hands over something by row that attention of a group was not tried with.
    """

    def __init__(self, attention: HybridAttention, max_rows: int) -> None:
        super().__init__(attention.prompt_backend, attention.decode_backend)
        self._max_rows = max_rows
        self._outputs: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        self._planned: PlannedDecode | None = None
        self._sizes = (0, 0, 0)
        self._num_rows = 0
        self.num_breaks = 0

    def serve(self, prompt: ForwardBatch, planned: PlannedDecode, rows: tuple[int, int, int]) -> None:
        """Attend for these at the next replays; `rows`: the prompt's, all that are real, the graphs'."""
        cut, num_rows, size = rows
        num_decode_rows = planned.batch.batch_size
        if num_rows < self._num_rows:
            for output in self._outputs.values():
                output[num_rows : self._num_rows].zero_()
        self._prompt, self._planned, self._num_rows = prompt, planned, num_rows
        self._sizes = (cut, num_decode_rows, size - cut - num_decode_rows)

    def forward(
        self,
        q: Any = None,
        k: torch.Tensor | None = None,
        v: torch.Tensor | None = None,
        layer: Any = None,
        forward_batch: ForwardBatch | None = None,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention output [rows, heads * head_dim], padding rows and all."""
        if q is None or k is None or v is None or q.dim() == 4 or kwargs.keys() - HEAD_ARGUMENTS:
            raise UnsupportedError(
                f"--layered-graph-group-rows: layer {getattr(layer, 'layer_id', '?')} attends in a way that"
                " was not tried with graphs; leave the flag out"
            )
        self.num_breaks += 1
        width = layer.tp_q_head_num * layer.v_head_dim
        output = self._outputs.get((width, v.dtype))
        if output is None:
            output = self._outputs[width, v.dtype] = v.new_zeros((self._max_rows, width))
        output = output[: q.shape[0]]
        self._break(q, k, v, output, layer, save_kv_cache, kwargs)
        return output

    def _attend(
        self, q: Any, k: Any, v: Any, output: torch.Tensor, layer: Any, save_kv_cache: bool, kwargs: Any
    ) -> None:
        """Between two graphs; nobody attends while they are captured.

        Decode rows may have been planned with padding rows, which lie behind them in these graphs, too.
        """
        if self._planned is None:
            return
        prompt_q, decode_q, _ = q.split_with_sizes(self._sizes)
        prompt_k, decode_k, _ = k.split_with_sizes(self._sizes)
        prompt_v, decode_v, _ = v.split_with_sizes(self._sizes)
        prompt = self.prompt_backend.forward(
            prompt_q, prompt_k, prompt_v, layer, self._prompt, save_kv_cache, **kwargs
        )
        backend, batch = self._planned
        decode = backend.forward(decode_q, decode_k, decode_v, layer, batch, save_kv_cache, **kwargs)
        num_rows = self._num_rows
        real = decode.flatten(1)[: num_rows - prompt_q.shape[0]]
        torch.cat([prompt.flatten(1), real], out=output[:num_rows])

    # SGLang keeps the arguments of the capture for the replays; tensors in them lie in the graphs' pool.
    _break: Any = eager_on_graph(True)(_attend)


class BreakableRecorder(CudaGraphRecorder):
    """Graphs that break at attention, on the stream and in the pool of the layered decode graphs."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._graph_backend = BreakableCudaGraphBackend(self._runner)

    @contextmanager
    def session(self) -> Iterator[None]:
        """As SGLang's capture of prompts: the models' switch is that of breakable graphs."""
        keep_gc = self._args.enable_cudagraph_gc
        with (
            torch.no_grad(),
            forwarding.settings_of(self._model_runner),
            freeze_gc(keep_gc),
            graph_capture(stream=self._runner.stream) as context,
            self._graph_backend.capture_session(context.stream),
        ):
            yield

    def record(self, key: Hashable, run: Callable[[], Any], after_warmup: Callable[[], None]) -> None:
        """Two warm-up runs, then the capture; `key` is a size and a name."""
        super().record(_shape_key(key), run, after_warmup)

    def replay(self, key: Hashable) -> Any:
        """Launch the graphs and attend between them, on the current stream."""
        return super().replay(_shape_key(key))


@cache
def _shape_key(key: Any) -> ShapeKey:
    """SGLang's backend reads the size out of its keys."""
    size, name = key
    return ShapeKey(size=size, variant_label=str(name))


def group_obstacle(model_runner: Any, ranges: LayerRanges) -> str | None:
    """What layers of this server depend on beside their rows, or were not tried with; None: nothing."""
    args, config = arguments.resolved(model_runner.server_args), model_runner.model_config
    if stock_buckets(model_runner) is None:
        return "SGLang captures no decode graphs, in whose memory they would lie"
    obstacles = {
        "attention is latent (MLA)": model_runner.use_mla_backend,
        "the model is multimodal": config.is_multimodal or config.model_is_mrope,
        "weights are quantized": bool(config.quantization),
        "the KV cache is quantized": model_runner.kv_cache_dtype != model_runner.dtype,
        "the model has no pipeline stages": not isinstance(ranges, PipelineRanges),
        "layers are cut between ranks": args.tp_size > 1,
        "experts are counted": hasattr(model_runner, "layered_expert_watch")
        or args.expert_distribution_recorder_mode is not None,
        "ids of experts are returned": args.enable_return_routed_experts,
        "KV comes back from host memory while layers run (--enable-hierarchical-cache)": (
            args.enable_hierarchical_cache
        ),
        "graphs that break cannot be offloaded (--enable-memory-saver)": args.enable_memory_saver,
        "attention of a group is not SGLang's backends": args.layered_group_attention
        not in ("auto", "backends"),
    }
    untried = next((reason for reason, applies in obstacles.items() if applies), None)
    return untried or obstacle(model_runner)
