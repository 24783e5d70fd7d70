"""Counts the experts of every forward of one ModelRunner, in any mode, without a sync in the step.

Hooks on SGLang's TopK modules launch the counting kernel, also while a CUDA graph is captured. Around each
forward SGLang calls its expert distribution recorder; ours stands in front of it (upstream/experts.py), says
which rows are the prompt's before and copies the totals to the host after.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sglang_layered_kernels.expert_traffic import ExpertTrafficCounter
from sglang_layered_kernels.expert_traffic.layout import TOTALS

from sglang_layered.errors import KernelError, UnsupportedError
from sglang_layered.metrics.traffic import ExpertShape, ForwardCounts
from sglang_layered.upstream.experts import MoeLayer, expert_shape, find_moe_layers, watch_forwards
from sglang_layered.upstream.releases import serving

COLUMNS = TOTALS[:6]  # those that ForwardCounts has, in its order
STRAYS = TOTALS.index("stray_ids")


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows of each kind a forward has."""

    num_prompt: int
    num_decode: int


@dataclass(frozen=True, slots=True)
class _Copied:
    """Totals after a forward, on their way to the host; `ready` is None where they are there already."""

    number: int
    rows: Rows
    totals: torch.Tensor
    ready: Any | None


class ExpertWatch:
    """The counters of one ModelRunner; `layers` are its MoE layers in order.

    Raises:
        KernelError: a layer has more experts than the kernel counts.
    """

    def __init__(self, layers: tuple[MoeLayer, ...], device: torch.device | str) -> None:
        self.layers = layers
        self.shape: ExpertShape = expert_shape(layers)
        self._counter = ExpertTrafficCounter(len(layers), max(layer.num_local for layer in layers), device)
        self._is_cuda = self._counter.device.type == "cuda"
        self._is_started = False
        self._split = Rows(0, 0)  # of the layers that run now
        self._graph_split = torch.zeros(2, dtype=torch.int32, device=device)
        self._copied: deque[_Copied] = deque()
        # Calls of a forward on the CPU, counted after it.
        self._heard: list[tuple[int, torch.Tensor, int]] = []
        self._running = Rows(0, 0)
        self._number: Callable[[], int] = lambda: 0
        self._decode_rows: Callable[[], int] = lambda: 0
        self._before = np.zeros((len(layers), len(TOTALS)), dtype=np.int64)
        for index, layer in enumerate(layers):
            layer.topk.register_forward_hook(partial(self._hear, index))

    @classmethod
    def install(cls, model_runner: Any) -> None:
        """Watch this ModelRunner's model, once; it is `layered_expert_watch` there.

        Only the rank that reports is watched: the others compute the same rows, and would count for nobody.

        Raises:
            UnsupportedError: its experts cannot be counted.
        """
        is_known = getattr(model_runner, "layered_expert_watch", None) is not None
        ranks = serving.ranks_of_runner(model_runner)
        if not is_known and ranks.attn_tp_rank == 0:
            layers = find_moe_layers(model_runner.model)
            if not layers and ranks.pp_size == 1:  # a pipeline stage may have none
                raise UnsupportedError(
                    "--enable-expert-traffic-metrics: no layer of this model runs its experts as SGLang's"
                    " TopK and FusedMoE modules side by side; leave the flag out"
                )
            model_runner.layered_expert_watch = cls(layers, model_runner.device) if layers else None

    def start(self, number: Callable[[], int], mixed_decode_rows: Callable[[], int]) -> None:
        """Count forwards from now on.

        Args:
            number: gives the scheduler's number of the step that is being launched.
            mixed_decode_rows: gives how many rows of the mixed chunk that is being launched decode.
        """
        self._number, self._decode_rows, self._is_started = number, mixed_decode_rows, True
        self._before = self._counter.totals.cpu().numpy()[:, : len(TOTALS)].copy()
        watch_forwards(self)

    @contextmanager
    def rows(self, num_prompt: int, num_decode: int) -> Iterator[None]:
        """Layers that run inside have these rows, the prompt's first; only without graphs."""
        before, self._split = self._split, Rows(num_prompt, num_decode)
        try:
            yield
        finally:
            self._split = before

    def begin(self, forward_batch: Any) -> None:
        """A forward starts: outside of a layered step's group it runs one kind of rows."""
        rows = self._running = self._rows_of(forward_batch)
        step = getattr(forward_batch, "layered_step", None)
        self._split = rows if step is None or rows.num_decode == 0 else Rows(0, rows.num_decode)
        if self._is_cuda and (step is None or rows.num_decode > 0):
            split = torch.tensor(
                [self._split.num_prompt, self._split.num_prompt + self._split.num_decode], dtype=torch.int32
            )
            self._graph_split.copy_(split.pin_memory(), non_blocking=True)

    def end(self) -> None:
        """A forward is launched: copy the totals behind it."""
        self._counter.record_all(self._heard)  # between the layers' large products each would cost more
        self._heard.clear()
        totals, ready = self._counter.totals, None
        if self._is_cuda:
            host = torch.empty(totals.shape, dtype=totals.dtype, pin_memory=True)
            host.copy_(totals, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        else:
            host = totals.clone()
        self._copied.append(_Copied(self._number(), self._running, host, ready))

    def take(self, number: int) -> list[ForwardCounts]:
        """The counts of forwards up to step `number` that were not taken yet; waits for their end.

        Raises:
            KernelError: a layer saw an id that none of its experts has, so the counts are not whole.
        """
        taken = []
        while self._copied and self._copied[0].number <= number:
            copied = self._copied.popleft()
            if copied.ready is not None:
                copied.ready.synchronize()
            taken.append(self._counts(copied.rows, copied.totals.numpy()[:, : len(TOTALS)]))
        return taken

    def _counts(self, rows: Rows, totals: np.ndarray[Any, Any]) -> ForwardCounts:
        delta, self._before = totals - self._before, totals
        if delta[:, STRAYS].any():
            layer = self.layers[int(delta[:, STRAYS].argmax())]
            raise KernelError(f"expert traffic: layer {layer.layer_id} chose an expert that it does not have")
        return ForwardCounts(rows.num_prompt, rows.num_decode, *delta.T[: len(COLUMNS)])

    def _rows_of(self, forward_batch: Any) -> Rows:
        step = getattr(forward_batch, "layered_step", None)
        if step is not None:
            return Rows(*step.num_rows)
        num_rows, mode = forward_batch.input_ids.shape[0], forward_batch.forward_mode
        if mode.is_mixed():
            num_decode = self._decode_rows()
            return Rows(num_rows - num_decode, num_decode)
        # A draft that is verified is an extend to SGLang; what a draft's own model runs is not watched.
        is_prompt = mode.is_extend() and not mode.is_target_verify()
        return Rows(num_rows, 0) if is_prompt else Rows(0, num_rows)

    def _hear(self, index: int, module: Any, args: tuple[Any, ...], output: Any) -> None:
        ids = self.layers[index].local_ids(args, output)
        if self._is_cuda and torch.cuda.is_current_stream_capturing():
            self._counter.record(index, ids, self._graph_split)
            return
        num_rows = self._split.num_prompt + self._split.num_decode
        if ids.shape[0] > num_rows:  # the rest is padding
            ids = ids[:num_rows]
        call = (index, ids, min(self._split.num_prompt, ids.shape[0]))
        if self._is_cuda:
            self._counter.record(*call)
        elif self._is_started:
            self._heard.append(call)
