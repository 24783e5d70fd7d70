"""The public face of the kernel: counters of all layers of a model, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from sglang_layered_kernels.expert_traffic import reference
from sglang_layered_kernels.expert_traffic.layout import (
    NUM_TOTALS,
    ExpertTraffic,
    LayerCounters,
    read_counters,
)
from sglang_layered_kernels.expert_traffic.reference import Call
from sglang_layered_kernels.expert_traffic.side_stream import SideStream

from sglang_layered.errors import KernelError

MAX_EXPERTS = 1024  # the histograms of one program stay in registers


class ExpertTrafficCounter:
    """Counts the experts of prompt rows, of decode rows and of both, per layer, without a host sync.

    On a CUDA device `record` launches a Triton kernel and can be captured in a CUDA graph; on the CPU it runs
    numpy. Cost, estimated: one launch a layer, in line some 2 to 3 us of a layer's 115 us (Qwen3-30B,
    8 decode rows), which is above 1 %. With `side_stream` it runs beside the layer's expert GEMMs, and the
    step's own stream has two waits more, which in a graph are edges.

    Args:
        num_layers: layers to count, 0 to num_layers - 1.
        num_experts: ids that `topk_ids` can hold are 0 to num_experts - 1.
        device: where `topk_ids` will be.
        side_stream: launch beside the current stream; then call `join` at the end of each forward and
            before the end of each graph's capture. CUDA only.
        use_triton: None chooses by the device.

    Raises:
        KernelError: a size is out of range, or a side stream was asked for off CUDA.

    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        device: torch.device | str,
        *,
        side_stream: bool = False,
        use_triton: bool | None = None,
    ) -> None:
        if num_layers < 1 or not 1 <= num_experts <= MAX_EXPERTS:
            raise KernelError(
                f"expert_traffic: num_layers = {num_layers}, num_experts = {num_experts}; give at least one"
                f" layer and 1 to {MAX_EXPERTS} experts"
            )
        self._tokens = torch.zeros(num_layers, 2, num_experts, dtype=torch.int64, device=device)
        self._totals = torch.zeros(num_layers, NUM_TOTALS, dtype=torch.int64, device=device)
        self.device = self._tokens.device
        is_cuda = self.device.type == "cuda"
        if not is_cuda and self.device.type != "cpu":
            raise KernelError(f"expert_traffic: device {self.device}; give a CUDA device or cpu")
        if side_stream and not is_cuda:
            raise KernelError(
                f"expert_traffic: side_stream needs a CUDA device, not {self.device}; leave it out"
            )
        self._side = SideStream(self.device) if side_stream else None
        self._layers: list[LayerCounters] = []  # of the Triton kernel; without it the host counts
        if is_cuda if use_triton is None else use_triton:
            from sglang_layered_kernels.expert_traffic import triton_kernel

            self._count = triton_kernel.count
            scratch = torch.zeros(triton_kernel.scratch_numel(num_experts), dtype=torch.int32, device=device)
            layers = zip(self._tokens.unbind(), self._totals.unbind(), strict=True)
            self._layers = [LayerCounters(tokens, totals, scratch) for tokens, totals in layers]

    def record(self, layer: int, topk_ids: torch.Tensor, split: int | torch.Tensor = 0) -> None:
        """Count one call of one layer; calls of one counter must be on one stream.

        Args:
            layer: index of the layer, from 0.
            topk_ids: int32 or int64 [num_rows, top_k] experts of each row, on the counter's device. Ids below
                0 (padding, experts of another rank) do not count; num_experts or more makes `snapshot` fail.
            split: rows [0, split) are prompt rows, the others decode rows. An int, which a CUDA graph keeps
                as captured, or an integer tensor of two on the device, which a graph reads in each replay:
                prompt rows, and rows that count, so that a graph's padding does not. A tensor's values are
                not checked; above num_rows they mean all rows.

        Raises:
            KernelError: a shape, type, device or the layer is wrong. Nothing has been counted then.

        """
        self.record_all([(layer, topk_ids, split)])

    def record_all(self, calls: Sequence[Call]) -> None:
        """Count several calls (layer, topk_ids, split) as `record` does; on the CPU in one go.

        Raises:
            KernelError: as `record`. Nothing of any call has been counted then.

        """
        for layer, topk_ids, split in calls:
            self._check(layer, topk_ids, split)
        if not self._layers:
            if calls:
                reference.count(calls, self._tokens, self._totals)
            return
        for layer, topk_ids, split in calls:
            work = partial(self._count, topk_ids, split, self._layers[layer])
            if self._side is None:
                work()
            else:
                self._side.launch(work, topk_ids)

    def join(self) -> None:
        """Make the current stream wait for the side stream, if there is one."""
        if self._side is not None:
            self._side.join()

    def snapshot(self) -> ExpertTraffic:
        """Return what has been counted since the last reset; waits for all streams of the device."""
        self.join()
        self._wait()
        return read_counters(self._tokens, self._totals)

    @property
    def totals(self) -> torch.Tensor:
        """The live totals, int64 [num_layers, NUM_TOTALS] on the device, columns as in layout.TOTALS."""
        return self._totals

    def reset(self) -> None:
        """Set all counters to zero between what was launched before and after; waits as `snapshot` does."""
        self.join()
        self._wait()
        self._tokens.zero_()
        self._totals.zero_()
        self._wait()

    def _wait(self) -> None:
        if self.device.type == "cuda":  # the reader's stream is seldom the one that records
            torch.cuda.synchronize(self.device)

    def _check(self, layer: int, topk_ids: torch.Tensor, split: int | torch.Tensor) -> None:
        num_layers = len(self._tokens)
        if not 0 <= layer < num_layers:
            raise KernelError(f"expert_traffic: layer {layer} is not one of the counter's {num_layers}")
        is_ids = topk_ids.dtype in (torch.int32, torch.int64) and topk_ids.device == self.device
        if topk_ids.dim() != 2 or topk_ids.shape[1] < 1 or not is_ids:
            raise KernelError(
                f"expert_traffic: topk_ids is {topk_ids.dtype} {list(topk_ids.shape)} on {topk_ids.device};"
                f" give int32 or int64 [num_rows, top_k] on {self.device}"
            )
        if isinstance(split, torch.Tensor):
            self._check_split_tensor(split)
        elif not 0 <= split <= topk_ids.shape[0]:
            raise KernelError(
                f"expert_traffic: split = {split} is not in 0 to {topk_ids.shape[0]}, the rows of topk_ids"
            )

    def _check_split_tensor(self, split: torch.Tensor) -> None:
        is_integer = split.dtype in (torch.int32, torch.int64)
        if split.numel() != 2 or not is_integer or split.device != self.device:
            raise KernelError(
                f"expert_traffic: split is {split.dtype} {list(split.shape)} on {split.device}; give an int,"
                f" or two int32 or int64 on {self.device}"
            )
