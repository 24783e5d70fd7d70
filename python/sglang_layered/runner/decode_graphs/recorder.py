"""How a call is recorded and replayed: CUDA graphs in SGLang's shared pool; tests use a fake."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from sglang.srt.distributed.parallel_state import graph_capture
from sglang.srt.model_executor.runner.base_cuda_graph_runner import freeze_gc
from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode
from sglang.srt.utils import get_available_gpu_memory


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
    Replays must not run beside another graph of the pool. Upstream:
    srt/model_executor/runner/decode_cuda_graph_runner.py `capture`.
    """

    def __init__(self, model_runner: Any) -> None:
        self._model_runner = model_runner
        self._runner = model_runner.decode_cuda_graph_runner
        self._backend = FullCudaGraphBackend(
            self._runner, enable_memory_saver=model_runner.server_args.enable_memory_saver
        )

    @contextmanager
    def session(self) -> Iterator[None]:
        """Capture mode, communicators ready for capture, no garbage collection."""
        keep_gc = self._model_runner.server_args.enable_cudagraph_gc
        with (
            torch.no_grad(),
            model_capture_mode(),
            freeze_gc(keep_gc),
            graph_capture(stream=self._runner.stream) as context,
            self._backend.capture_session(context.stream),
        ):
            yield

    def record(self, key: Hashable, run: Callable[[], Any], after_warmup: Callable[[], None]) -> None:
        """Two warm-up runs, then the capture."""
        self._backend.capture_one(key, run, post_warmup_hook=after_warmup)

    def replay(self, key: Hashable) -> Any:
        """Launch the graph on the current stream."""
        return self._backend.replay(key, None)

    def free_gib(self) -> float:
        """Free memory of this rank's GPU in GiB."""
        runner = self._model_runner
        return get_available_gpu_memory(runner.device, runner.gpu_id, empty_cache=True)
