"""SGLang's machinery of CUDA graphs: input buffers, recording and replay.

Upstream: srt/model_executor/runner/decode_cuda_graph_runner.py `capture`,
srt/model_executor/runner_backend/full_cuda_graph_backend.py.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from sglang.srt.distributed.parallel_state import graph_capture
from sglang.srt.layers.dp_attention import DpPaddingMode
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
    PPProxyTensors,
    enable_num_token_non_padded,
)
from sglang.srt.model_executor.runner.base_cuda_graph_runner import freeze_gc
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.model_executor.runner.prefill_cuda_graph_runner import PrefillCudaGraphRunner
from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_layered.runner.decode_graphs.segments import BatchBuckets
from sglang_layered.upstream.memory import free_gib
from sglang_layered.upstream.recurrent import has_states
from sglang_layered.upstream.releases import arguments, forwarding

INPUTS = ("input_ids", "positions", "req_pool_indices", "seq_lens", "seq_lens_cpu", "out_cache_loc")


class DecodeInputs:
    """Inputs of up to `max_rows` decode rows, kept by SGLang's own registry.

    A padding row writes KV slot 0 and reads request 0 at `seq_len_fill` tokens; SGLang gives neither to a
    request. The storage is our own: in the hybrid layers SGLang may refill the shared one for prompt rows.
    """

    def __init__(self, device: Any, max_rows: int, seq_len_fill: int) -> None:
        self._seq_len_fill = seq_len_fill
        self._registry = forwarding.build_decode_registry(
            device=torch.device(device),
            max_bs=max_rows,
            max_num_token=max_rows,
            seq_len_fill_value=seq_len_fill,
            cache_loc_dtype=torch.int64,
            enable_num_token_non_padded=enable_num_token_non_padded(),
            register_global_num_tokens=False,
            share_pool=False,
        )
        self._num_filled = 0  # rows from the first one on that may be no padding
        whole = {name: self._slot(name, max_rows) for name in INPUTS}
        self._buffers = SimpleNamespace(**whole, encoder_lens=None, mamba_track_indices=None)

    def batch(self, bucket: int, logits: torch.Tensor | None) -> ForwardBatch:
        """The static decode batch of `bucket` rows; `logits` [bucket, vocab] is where its logits go."""
        inputs = {name: self._slot(name, bucket) for name in INPUTS}
        non_padded = self._slot("num_token_non_padded", bucket)
        if non_padded is not None:
            non_padded.fill_(bucket)
        return ForwardBatch(
            forward_mode=ForwardMode.DECODE,
            global_forward_mode=ForwardMode.DECODE,
            batch_size=bucket,
            **inputs,
            orig_seq_lens=inputs["seq_lens"],
            seq_lens_sum=bucket * self._seq_len_fill,
            mrope_positions=self._slot("mrope_positions", bucket),
            num_token_non_padded=non_padded,
            next_token_logits_buffer=logits,
            capture_hidden_mode=CaptureHiddenMode.NULL,
            dp_padding_mode=DpPaddingMode.get_default_mode_in_cuda_graph(),
            spec_algorithm=SpeculativeAlgorithm.NONE,
        )

    def fill(self, decode: ForwardBatch, bucket: int) -> Any:
        """Copy the rows in and reset the padding; gives what attention backends take at a replay."""
        num_rows = decode.batch_size
        # Behind what was filled before padding is as it should be, and SGLang resets it tensor by tensor.
        stale, self._num_filled = max(self._num_filled, num_rows), num_rows
        self._registry.fill_from(
            decode, raw_bs=num_rows, padded_bs=stale, raw_num_tokens=num_rows, padded_num_tokens=stale
        )
        return forwarding.build_replay_fb_view(
            forward_batch=decode,
            buffers=self._buffers,
            bs=bucket,
            raw_bs=num_rows,
            num_tokens=bucket,
            seq_len_fill_value=self._seq_len_fill,
            capture_forward_mode=ForwardMode.DECODE,
            is_encoder_decoder=False,
        )

    def _slot(self, name: str, num_rows: int) -> torch.Tensor | None:
        if not self._registry.has_slot(name):
            return None
        return self._registry.get_slot(name).slice_for(num_rows, num_rows)


class StaticRows:
    """Activations [max_rows, ...], one tensor for each key of the model's PPProxyTensors.

    At some cuts a key is None (no residual before layer 0): `keys` says at each cut which ones are there.
    Without `max_rows` there are as many rows as in the samples.
    """

    def __init__(self, samples: Iterable[PPProxyTensors], max_rows: int | None = None) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.keys: list[dict[str, bool]] = []
        for sample in samples:
            self.keys.append({key: tensor is not None for key, tensor in sample.tensors.items()})
            for key, tensor in sample.tensors.items():
                if tensor is not None and key not in self.tensors:
                    self.tensors[key] = tensor.new_zeros((max_rows or tensor.shape[0], *tensor.shape[1:]))
        self._homes = {tensor.untyped_storage().data_ptr(): key for key, tensor in self.tensors.items()}

    def at(self, cut: int, end: int, first: int = 0) -> PPProxyTensors:
        """Views of rows [first, end), as the model gives them at this cut."""
        here = self.keys[cut]
        return PPProxyTensors(
            {key: self.tensors[key][first:end] if there else None for key, there in here.items()}
        )

    def put(self, cut: int, rows: Mapping[str, torch.Tensor | None]) -> None:
        """Write the first rows. A layer may have changed them in place, or handed one on as another."""
        there = {key: tensor for key, tensor in rows.items() if tensor is not None}
        if there.keys() != {key for key, is_there in self.keys[cut].items() if is_there}:
            raise AssertionError(f"rows at cut {cut} are {set(there)}, recorded were {self.keys[cut]}")
        homes = {key: self._homes.get(tensor.untyped_storage().data_ptr()) for key, tensor in there.items()}
        strays = [key for key, home in homes.items() if home not in (None, key)]
        there |= {key: there[key].clone() for key in strays}
        for key, tensor in there.items():
            if homes[key] != key:
                self.tensors[key][: tensor.shape[0]].copy_(tensor)

    def clear(self) -> None:
        """Forget what warm-up runs left."""
        for tensor in self.tensors.values():
            tensor.zero_()


class GraphRecorder(Protocol):
    """Records calls once and replays them on the same memory."""

    def session(self) -> AbstractContextManager[None]:
        """Surrounds all recording."""

    def record(self, key: Hashable, run: Callable[[], Any], after_warmup: Callable[[], None]) -> None:
        """Record one call; it may run several times, `after_warmup` after each run but the last."""

    def replay(self, key: Hashable) -> Any:
        """Run it again; the value is the recorded call's, its tensors hold the new numbers."""

    def free_gib(self) -> float:
        """Free device memory in GiB."""


class CudaGraphRecorder:
    """CUDA graphs through SGLang's own backend: its pool, warm-ups and memory saver.

    The stream is the one that SGLang captured its decode graphs on: the allocator gives freed blocks of a
    pool to the same stream only, so another stream would hold the whole scratch memory a second time.
    Replays must not run beside another graph of the pool.
    """

    def __init__(self, model_runner: Any) -> None:
        self._model_runner = model_runner
        self._runner = model_runner.decode_cuda_graph_runner
        # An instance of our own: `cleanup` of SGLang's, as for new weights, clears every graph that it holds.
        self._args = arguments.resolved(model_runner.server_args)
        self._graph_backend = FullCudaGraphBackend(
            self._runner, enable_memory_saver=self._args.enable_memory_saver
        )

    @contextmanager
    def session(self) -> Iterator[None]:
        """Capture mode, communicators ready for capture, no garbage collection."""
        keep_gc = self._args.enable_cudagraph_gc
        with (
            torch.no_grad(),
            forwarding.settings_of(self._model_runner),
            model_capture_mode(),
            freeze_gc(keep_gc),
            graph_capture(stream=self._runner.stream) as context,
            self._graph_backend.capture_session(context.stream),
        ):
            yield

    def record(self, key: Hashable, run: Callable[[], Any], after_warmup: Callable[[], None]) -> None:
        """Two warm-up runs, then the capture."""
        self._graph_backend.capture_one(key, run, post_warmup_hook=after_warmup)

    def replay(self, key: Hashable) -> Any:
        """Launch the graph on the current stream."""
        return self._graph_backend.replay(key, None)

    def free_gib(self) -> float:
        """Free memory of this rank's GPU in GiB."""
        return free_gib(self._model_runner)


def stock_buckets(model_runner: Any) -> BatchBuckets | None:
    """The batch sizes of SGLang's own decode graphs; None where it has none."""
    stock = model_runner.decode_cuda_graph_runner
    if not isinstance(stock, DecodeCudaGraphRunner):  # None, or on the CPU one that compiles
        return None
    return BatchBuckets(tuple(stock.capture_bs), exact=stock.disable_padding)


def logits_buffer(model_runner: Any, bucket: int) -> torch.Tensor:
    """Where logits [bucket, vocab] go: SGLang's one buffer for all graphs, so that none is in the pool."""
    shared, vocab_size = model_runner.graph_shared_output, model_runner.model_config.vocab_size
    return shared.get_logits_buffer(vocab_size, rows=bucket)


def slower_than_stock(model_runner: Any) -> dict[str, bool]:
    """What a layered step goes without on CUDA, and whether SGLang's own steps have it on this server."""
    prefill = model_runner.prefill_cuda_graph_runner
    args = arguments.resolved(model_runner.server_args)
    return {
        "prompt rows run without CUDA graphs, SGLang's whole prompts by its prefill graphs"
        " (--layered-graph-group-rows)": isinstance(prefill, PrefillCudaGraphRunner)
        and not args.layered_graph_group_rows,
        "decode rows run by graphs that --enable-torch-compile does not compile": args.enable_torch_compile,
    }


def obstacle(model_runner: Any) -> str | None:
    """What SGLang's decode graphs handle on this server and layered ones do not, or None."""
    stock, args = model_runner.decode_cuda_graph_runner, arguments.resolved(model_runner.server_args)
    obstacles = {
        "the decode graph backend is not 'full'": not isinstance(stock.backend, FullCudaGraphBackend),
        "the model has an encoder": stock.is_encoder_decoder,
        "rows are gathered between ranks (--moe-a2a-backend)": stock.require_gathered_buffer,
        "n-gram embeddings are on": stock.use_ngram_embedding,
        "the model has recurrent layers, which they were not tried with": has_states(model_runner),
        "the KV canary is on": model_runner.canary_manager is not None,
        "adapters are on (--enable-lora): SGLang's graphs read their own buffers": args.enable_lora,
    }
    return next((reason for reason, applies in obstacles.items() if applies), None)
